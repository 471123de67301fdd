"""From a frozen sweep to jobs in the queue: packs of runs as arrays, submitted through submitit and written down."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig
from sweep.estimate import estimate_seconds, machine
from sweep.launch.freeze import Frozen
from sweep.launch.slurm.job import Pack
from sweep.launch.slurm.packing import arrays, pack_runs, shares
from sweep.launch.slurm.queue import live_elements
from sweep.launch.slurm.resources import ask_cluster, check_path, sbatch_parameters, time_limit
from sweep.launch.slurm.snapshot import take_snapshot
from sweep.launch.slurm.submission import (
    CANCEL_FILE,
    FOLDER,
    STOPPED_FILE,
    Element,
    Submission,
    elements_of_runs,
    job_folder,
    read_submissions,
    reserve,
    write_submission,
)
from sweep.launcher import SlurmLauncher
from sweep.plan import plan_offsets
from sweep.schema import PLAN_FILE, InputError
from sweep.spec import PlannedRun
from sweep.stacking import stacks


def submit(
    frozen: Frozen, runs: Sequence[PlannedRun], launcher: SlurmLauncher, tracking: TrackingConfig, argv: Sequence[str]
) -> Submission | None:
    """Submit jobs for those of `runs` that SLURM does not have already; returns None where there are none such. To be
    called while holding the sweep's lease. Asking for a run again forgets that it was cancelled, and that the sweep was
    stopped.

    Raises InputError where the cluster does not answer or refuses the jobs; what was submitted before is written down.
    """
    frozen = dataclasses.replace(frozen, sweep_dir=frozen.sweep_dir.absolute())
    check_path(frozen.sweep_dir)
    cluster = ask_cluster()
    runs = _not_live(frozen, runs)
    if not runs:
        return None
    target = machine(launcher)
    seconds: dict[str, float] = {}
    for members in stacks(runs):
        shares, _ = estimate_seconds(members, target, {})
        seconds |= zip([run.run_id for run in members], shares, strict=True)
    levels = pack_runs(runs, seconds, 60.0 * launcher.pack_minutes)

    def minutes(members: Sequence[PlannedRun]) -> int:
        return time_limit(launcher, sum(seconds[run.run_id] for run in members))

    most = max(minutes(packs[0]) for packs in levels)
    code = take_snapshot(frozen.sweep_dir, launcher.allow_dirty)
    number = reserve(frozen.sweep_dir)
    folder = job_folder(frozen.sweep_dir, number)
    parameters = sbatch_parameters(launcher, most, frozen.sweep_dir.name, Path(code["path"]), folder)
    _forget_stops(frozen, runs)
    submission = Submission(
        number=number,
        submitted=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=tuple(argv),
        elements=(),
        minutes=most,
        resources={key: value for key, value in parameters.items() if key not in ("setup", "teardown")},
        code=code,
        settings={"launcher": dataclasses.asdict(launcher), "tracking": dataclasses.asdict(tracking)},
        cluster=cluster.name,
    )
    offsets = plan_offsets(frozen.sweep_dir / PLAN_FILE)
    empty = _empty_pack(submission, launcher, tracking, frozen.sweep_dir, target.device, cluster.kill_wait)

    def job(members: Sequence[PlannedRun], limit: int) -> Pack:
        return dataclasses.replace(
            empty,
            runs=tuple((run.run_id, offsets[run.run_id]) for run in members),
            alone={run.run_id: run.execution.micro_batch for run in members if launcher.stack == "off"},
            corpora={run.data_hash or "": str(frozen.corpus(run).absolute()) for run in members},
            minutes=limit,
        )

    found = [array for packs in levels for array in arrays(packs, minutes, cluster.array_size)]
    jobs = [[job(members, minutes(array[0])) for members in array] for array in found]
    return _send(frozen.sweep_dir, submission, jobs, seconds, launcher, parameters)


def _empty_pack(
    submission: Submission,
    launcher: SlurmLauncher,
    tracking: TrackingConfig,
    sweep_dir: Path,
    device: str,
    kill_wait: int,
) -> Pack:
    return Pack(
        sweep_dir=str(sweep_dir),
        submission=submission.number,
        runs=(),
        corpora={},
        device=device,
        threads=launcher.threads,
        tracking=tracking,
        retries=launcher.retries,
        stop_after=launcher.stop_after,
        minutes=0,
        kill_wait=kill_wait,
        command=submission.command,
    )


def _send(
    sweep_dir: Path,
    submission: Submission,
    jobs: Sequence[Sequence[Pack]],
    seconds: Mapping[str, float],
    launcher: SlurmLauncher,
    parameters: dict[str, Any],
) -> Submission:
    """Submit one array after another, writing each one down."""
    folder = job_folder(sweep_dir, submission.number)
    ids: list[str] = []  # of the arrays
    for array, share in zip(jobs, shares(launcher.parallel, [len(array) for array in jobs]), strict=True):
        parameters = parameters | {"time": array[0].minutes, "array_parallelism": share}
        if len(ids) >= launcher.parallel:  # arrays with one element at a time each would be too many already
            parameters["dependency"] = f"afterany:{ids[-launcher.parallel]}"
        with _uninterrupted():  # a job that nobody wrote down would be trained again by the next submission
            try:
                job_ids = _submit_array(folder, array, launcher, parameters)
            except InputError as error:
                if not ids:
                    raise
                before = f"{len(submission.elements)} jobs before these were accepted and go on"
                raise InputError(f"{error}; {before}, the same command submits the others") from error
            elements = tuple(
                Element(job_id, run_ids, sum(map(seconds.__getitem__, run_ids)))
                for job_id, run_ids in zip(job_ids, [tuple(dict(one.runs)) for one in array], strict=True)
            )
            ids.append(elements[0].array_id)
            submission = dataclasses.replace(submission, elements=submission.elements + elements)
            write_submission(sweep_dir, submission)
    return submission


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within, Ctrl-C waits for the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def _not_live(frozen: Frozen, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those of `runs` that no living job is going to train. A run that was cancelled is one of them: its job may take a
    while to notice, and may have other runs to do, but its claim is the earlier one."""
    live = live_elements(frozen.sweep_dir)
    held = {
        run_id
        for run_id, elements in elements_of_runs(read_submissions(frozen.sweep_dir)).items()
        if any(element.job_id in live for element in elements)
    }
    return [run for run in runs if run.run_id not in held or (frozen.run_dir(run) / CANCEL_FILE).exists()]


def _forget_stops(frozen: Frozen, runs: Sequence[PlannedRun]) -> None:
    for path in (frozen.sweep_dir / FOLDER / STOPPED_FILE, *(frozen.run_dir(run) / CANCEL_FILE for run in runs)):
        path.unlink(missing_ok=True)


def _submit_array(
    folder: Path, packs: Sequence[Pack], launcher: SlurmLauncher, parameters: dict[str, Any]
) -> list[str]:
    """Submit one job, or an array of several; returns their ids in order."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder, python=launcher.python)  # a new one each: it never forgets a parameter
    executor.update_parameters(**parameters)
    try:
        with _outside_of_jobs(), executor.batch():
            jobs = [executor.submit(one) for one in packs]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise InputError(
            f"launcher=slurm: sbatch refused the jobs: {_said(str(error))}; change what launcher.* asks for"
        ) from error


def _said(error: str) -> str:
    """What sbatch gave as its reason, in one line."""
    lines = [line.partition("sbatch:")[2].strip().removeprefix("error: ") for line in error.splitlines()]
    return "; ".join(filter(None, lines)) or error.partition("\n")[0]


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Within, the environment does not say that this process is in a job itself (of an interactive session, say),
    which sbatch would take for what is wanted of the new one."""
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    held = {name: os.environ.pop(name) for name in names if inside}
    try:
        yield
    finally:
        os.environ.update(held)
