"""How far a sweep is: the runs its plan expects, the records that are there, and the jobs submitted for them.

Reads files and asks SLURM once; changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sweep.launch.slurm.queue import Queue, ask
from sweep.launch.slurm.submission import (
    CANCEL_FILE,
    FOLDER,
    STOPPED_FILE,
    Element,
    elements_of_runs,
    read_submissions,
)
from sweep.lease import is_held
from sweep.record import FINISHED, TRACEBACK_FILE, read_status
from sweep.run_dir import checked
from sweep.run_dir import run_dir as folder_of
from sweep.schema import PLAN_FILE, RUNS_DIR, SPEC_FILE, STATUSES, InputError
from sweep.stored import last_evaluation

# States that no record has: of a run that was cut off, and of one whose job waits, is gone, was cancelled, or is
# unknown because SLURM does not answer.
SHOWN_ONLY = ("interrupted", "queued", "lost", "cancelled", "unknown")


@dataclass(frozen=True)
class Job:
    """The SLURM job that a run was submitted in: the one that still lives, else the last. None where SLURM does not
    say."""

    id: str
    submission: int
    state: str | None = None
    node: str | None = None
    reason: str | None = None
    live: bool | None = None


@dataclass(frozen=True)
class RunStatus:
    """One run of a sweep."""

    run_id: str
    n_layer: int
    d_model: int
    batch_tokens: int
    lr: float
    seed: int
    steps: int
    planned: bool  # the sweep's plan expects it
    status: str = "planned"  # one of STATUSES
    active: bool = False  # some process is training it now
    submission: int | None = None  # whose job wrote the record last; None: it was no job
    attempts: int = 0
    failures: int = 0  # attempts that ended in an error since somebody asked for it
    steps_done: int = 0  # at the newest evaluation
    test_loss: float | None = None
    error: str | None = None
    traceback: str | None = None  # of a failed run's error, where it was no message for people
    notes: tuple[str, ...] = ()  # what the attempts had to do to go on
    cancelled: bool = False  # somebody has asked that it be not trained
    job: Job | None = None

    @property
    def shown(self) -> str:
        """The status as a person wants to read it: one of STATUSES or SHOWN_ONLY."""
        live = self.job.live if self.job else None
        asked_again = live and self.job and self.job.submission != self.submission
        if self.status in FINISHED or (self.status == "failed" and not asked_again):
            return self.status
        if self.active:
            return "running"
        if self.cancelled:
            return "cancelled"
        if self.job is None:
            return "interrupted" if self.status == "running" else self.status
        return {True: "queued", False: "lost", None: "unknown"}[live]


@dataclass(frozen=True)
class SweepStatus:
    """All runs of a sweep directory."""

    sweep_dir: str
    expected: int  # runs in the plan; 0 without a plan
    runs: list[RunStatus]
    flops_done: float
    flops: float  # of all runs in the plan
    stopped: str | None = None  # why the jobs of the sweep train no further run
    slurm_problem: str | None = None  # why SLURM could not say which jobs are live

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status as shown."""
        found = Counter(run.shown for run in self.runs)
        return {status: found[status] for status in (*STATUSES, *SHOWN_ONLY) if found[status]}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        runs = [{**asdict(run), "shown": run.shown} for run in self.runs]
        return {**asdict(replace(self, runs=[])), "runs": runs, "counts": self.counts}


def sweep_status(sweep_dir: Path) -> SweepStatus:
    """The state of every run that the plan in `sweep_dir` expects or of which a record is there.

    Raises InputError where `sweep_dir` is no sweep directory, or where its plan or a submission is damaged.
    """
    plan_path, runs_dir = sweep_dir / PLAN_FILE, sweep_dir / RUNS_DIR
    if not plan_path.exists() and not runs_dir.is_dir():
        raise InputError(f"{sweep_dir} is not a sweep directory: it has neither {PLAN_FILE} nor {RUNS_DIR}/")
    runs, flops_done, flops = [], 0.0, 0.0
    for expected, cost in plan_lines(plan_path) if plan_path.exists() else ():
        run, done = _with_record(sweep_dir, expected)
        runs.append(run)
        flops, flops_done = flops + cost, flops_done + done
    planned = len(runs)
    known = {run.run_id for run in runs}
    for name in sorted(path.name for path in runs_dir.iterdir()) if runs_dir.is_dir() else []:
        if name not in known and (stray := _recorded(runs_dir / name)) is not None:
            runs.append(_with_record(sweep_dir, stray)[0])
    submissions = read_submissions(sweep_dir)
    elements = elements_of_runs(submissions)
    numbers = {element.job_id: one.number for one in submissions for element in one.elements}
    unfinished = {run.run_id for run in runs if run.status not in FINISHED}
    queue = ask(submissions, unfinished)
    stopped = stop_reason(sweep_dir)
    runs = [
        _with_job(sweep_dir, run, [_job(e, numbers, queue) for e in elements.get(run.run_id, ())], bool(stopped))
        for run in runs
    ]
    return SweepStatus(str(sweep_dir), planned, runs, flops_done, flops, stopped, queue.problem)


def plan_lines(path: Path) -> Iterator[tuple[RunStatus, float]]:
    """Each run of plan.jsonl and its FLOPs, without the checks that training makes: they would take most of the time
    of looking at a large sweep. Raises InputError, naming the line, where one is damaged."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                content = json.loads(line)
                run = _expected(checked(content["run_id"]), content["spec"], planned=True)
                yield run, float(content["costs"].get("flops", 0.0))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}:{number} is damaged ({error}); restore it or plan into a new sweep_dir"
                ) from error


def stop_reason(sweep_dir: Path) -> str | None:
    """Why the jobs of the sweep train no further run; None while they do."""
    try:
        return str(json.loads((sweep_dir / FOLDER / STOPPED_FILE).read_text())["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FOLDER}/{STOPPED_FILE} is there, but damaged"


def _expected(run_id: str, spec: dict[str, Any], planned: bool) -> RunStatus:
    model = spec["model"]
    return RunStatus(run_id, int(model["n_layer"]), int(model["d_model"]), int(spec["batch_tokens"]),
                     float(spec["optimizer"]["lr"]), int(spec["seed"]), int(spec["steps"]), planned)  # fmt: skip


def _recorded(run_dir: Path) -> RunStatus | None:
    """The run whose record lies there though no plan expects it."""
    try:
        spec = json.loads((run_dir / SPEC_FILE).read_text())
        return _expected(spec["run_id"], spec, planned=False) if spec["run_id"] == run_dir.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not a run's directory, or a record that `isoloss collect` sets aside by name


def _with_record(sweep_dir: Path, run: RunStatus) -> tuple[RunStatus, float]:
    """`run` as its record says, and the FLOPs it has behind it."""
    try:
        run_dir = folder_of(sweep_dir, run.run_id)
    except InputError as error:
        return replace(run, error=str(error)), 0.0
    recorded = read_status(run_dir) or {}
    row = last_evaluation(run_dir) or {}
    status = recorded.get("status", "planned")
    return replace(
        run,
        status=status,
        active=status == "running" and is_held(run_dir),
        submission=(recorded.get("claim") or (None,))[0],
        attempts=recorded.get("attempts", 0),
        failures=recorded.get("failures", 0),
        steps_done=row.get("step", 0),
        test_loss=row.get("test_loss"),
        error=recorded.get("error"),
        traceback=_read(run_dir / TRACEBACK_FILE) if status == "failed" and recorded.get("traceback") else None,
        notes=tuple(recorded.get("notes", ())),
        cancelled=status not in FINISHED and (run_dir / CANCEL_FILE).exists(),
    ), row.get("flops", 0.0)


def _with_job(sweep_dir: Path, run: RunStatus, jobs: list[Job], stopped: bool) -> RunStatus:
    """`run` with its job, and without the claims of a record whose job is gone."""
    if not jobs:
        return run
    job = next((job for job in reversed(jobs) if job.live), jobs[-1])
    # A process that cannot be seen counts as alive for minutes after its last sign; of a job it is known at once.
    active = run.active and not (job.live is False and run.submission is not None)
    cancelled = run.cancelled or (job.live is False and job.state == "CANCELLED")
    run = replace(run, job=job, active=active, cancelled=cancelled)
    if run.error is not None or run.shown not in ("lost", "failed"):
        return run
    error = _last_line(sweep_dir / RUNS_DIR / run.run_id / TRACEBACK_FILE)
    return replace(run, error=error or ("the sweep stopped before it" if stopped else None))


def _job(element: Element, numbers: dict[str, int], queue: Queue) -> Job:
    submission = numbers[element.job_id]
    state = queue.states.get(element.job_id)
    live = queue.is_live(element.job_id)
    if state is None:
        return Job(element.job_id, submission, live=live)
    return Job(element.job_id, submission, state.state, state.node or None, state.reason or None, live)


def _last_line(path: Path) -> str | None:
    lines = (_read(path) or "").split("\n")
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
