"""What a job does: trains its runs, one stack after another in one process, or one run after another in several
processes that share each.

It ends with exit code 0 where its runs have results, 1 where one has failed, and REQUEUE where it wants to be queued
again, which the lines of its script after this do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweep.config import TrackingConfig
from sweep.launch.slurm.interrupt import Interruptions
from sweep.launch.slurm.resources import REQUEUE, again_file
from sweep.launch.slurm.standing import Standing, read
from sweep.launch.slurm.submission import CANCEL_FILE, FOLDER, STOPPED_FILE, job_folder
from sweep.run_dir import run_dir
from sweep.schema import PLAN_FILE, RUNS_DIR, STATUS_FILE
from sweep.spec import PlannedRun
from sweep.stacking import stacks

if TYPE_CHECKING:
    from sweep.launch.attempt import Ended, Evaluated
    from sweep.world import World

STARTS_WITHOUT_PROGRESS = 2  # after the first, until a job's current run, or its stack, is taken to have failed
KILL_SLACK_SECONDS = 30  # beyond the cluster's wait between SIGTERM and SIGKILL

Next = Literal["again", "next", "requeue", "wait"]


@dataclass(frozen=True)
class Pack:
    """The runs of one job, as plain data; calling it trains them."""

    sweep_dir: str
    submission: int
    runs: tuple[tuple[str, int], ...]  # run_id and where its line of plan.jsonl starts, in bytes
    corpora: dict[str, str]  # data_hash -> directory of the token files
    device: str  # cpu or cuda
    threads: int
    tracking: TrackingConfig
    retries: int
    stop_after: int
    minutes: int  # the time limit
    kill_wait: int  # seconds between SIGTERM and SIGKILL of a job that is cancelled
    command: tuple[str, ...]  # that submitted it
    alone: dict[str, int | None] = field(default_factory=dict)  # micro-batches of runs that leave the plan's stacks

    def __call__(self) -> None:
        """Train what is left of the runs. Ends the process, or raises SystemExit, with the exit codes above."""
        interruptions = Interruptions()  # before seconds of imports
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(self.threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        sys.argv = list(self.command)  # what the manifests name
        from sweep.world import join

        with join() as world:
            code = _Work(self, world, interruptions).do()
            interruptions.ignore()
        if world.size > 1:  # threads of torch's process group have been seen to abort the end of Python
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if code:
            raise SystemExit(code)

    @property
    def claim(self) -> tuple[int, int]:
        """That of this start of the job."""
        return self.submission, int(os.environ.get("SLURM_RESTART_COUNT", "0"))

    def run_dir(self, run_id: str) -> Path:
        """Where the record of a run lies."""
        return run_dir(Path(self.sweep_dir), run_id)

    def planned(self, run_id: str, offset: int) -> PlannedRun:
        """A run as the plan has it, but for its stack where the submission wants none."""
        from sweep.ladder import micro_batch
        from sweep.plan import read_run

        planned = read_run(Path(self.sweep_dir) / PLAN_FILE, offset, run_id)
        if run_id in self.alone:
            execution = dataclasses.replace(planned.execution, micro_batch=self.alone[run_id])
            planned = dataclasses.replace(planned, stack=None, execution=execution)
        if self.device != "cpu" or planned.execution.micro_batch:
            return planned
        # a plan made for a GPU left the micro-batch to it
        size = micro_batch(planned.spec.model, planned.spec.batch_sequences)
        return dataclasses.replace(planned, execution=dataclasses.replace(planned.execution, micro_batch=size))


class _Work:
    """One start of a job, seen from one of its processes. What is decided from files or signals is decided by rank 0,
    for all."""

    def __init__(self, pack: Pack, world: World, interruptions: Interruptions) -> None:
        from sweep.tracking import Mirror

        self.pack, self.world, self.interruptions = pack, world, interruptions
        self.device = world.device("cuda:0" if pack.device == "cuda" else pack.device)
        self.mirror = Mirror(pack.tracking)
        runs = [pack.planned(run_id, offset) for run_id, offset in pack.runs]
        self.groups = stacks(runs) if world.size == 1 else [[run] for run in runs]
        self.failed = False

    def do(self) -> int:
        """Train the runs; returns the exit code."""
        start = self.world.first(self._judge_progress)
        waiting = deque(self.groups)
        while waiting:
            due = self.world.first(partial(self._due, waiting.popleft()))
            waiting.extendleft(reversed(due[1:]))
            if not due:
                continue
            ended = self._train(due[0])
            if self.world.broken:  # these processes understand each other no more; rank 0 speaks for them
                return self._apart(ended[0]) if self.world.rank == 0 else 1
            following, again = self._after(due[0], ended)
            if following in ("requeue", "wait") and self.world.first(self._left):
                self.world.first(start.note)
                if following == "wait":
                    self._wait_for_the_end()
                return REQUEUE
            waiting.extendleft([run] for run in reversed(again))
        return 1 if self.failed else 0

    def _due(self, group: list[PlannedRun]) -> list[list[PlannedRun]]:
        """What of a group is to be trained now, as stacks: a run that has failed before is one by itself, since it may
        be what has failed the others."""
        wanted = [run for run in group if self._wanted(run.run_id)]
        tried = [run for run in wanted if self._has_failed(run.run_id)]
        fresh = [run for run in wanted if run not in tried]
        return [fresh] * bool(fresh) + [[run] for run in tried]

    def _apart(self, ended: Ended) -> int:
        """The exit code of rank 0 where another has failed or is gone: afresh, while the run may be tried again. The
        job's exit code may be the other's, so a file says so too."""
        self._after_failure(ended)
        if not self._left():
            return 1
        again_file(self._notes.parent, self._notes.stem).touch()
        return REQUEUE

    def _train(self, group: list[PlannedRun]) -> list[Ended]:
        from sweep.launch.attempt import Ended, Job, Task, train_job

        pack = self.pack
        corpus = Path(pack.corpora[group[0].data_hash or ""])
        if missing := next(filter(None, self.world.each(partial(_missing, corpus, self.device))), None):
            for run in group:
                self.world.first(partial(self._fail, run.run_id, missing))
            return [Ended(run.run_id, "failed", missing, retry=False) for run in group]
        job = Job(tuple(Task(run, pack.run_dir(run.run_id)) for run in group), corpus)
        report = _Report({run.run_id: run.spec.steps for run in group})
        self.interruptions.training = True
        try:
            return train_job(
                job, self.device, self.mirror, report, pack.claim, self.world, lambda task: _cancelled(task.run_dir)
            )
        finally:
            self.interruptions.training = False

    def _after(self, group: list[PlannedRun], ended: list[Ended]) -> tuple[Next, list[PlannedRun]]:
        """What follows an attempt at a group, and which of its runs are tried again; the same on all ranks."""
        heard = self.world.most(self.interruptions.requeue, self.interruptions.terminate)
        requeue, terminate = map(bool, heard)
        again = []
        for run, one in zip(group, ended, strict=True):
            if one.status == "failed":
                if not self.world.first(partial(self._after_failure, one)):
                    again.append(run)
                # an error may have left a GPU unusable to this process
                requeue = requeue or (one.retry and self.device != "cpu")
            elif one.status == "running" and not one.error:  # asked to stop; not superseded by another attempt
                terminate = terminate or not self.world.first(partial(_cancelled, self.pack.run_dir(run.run_id)))
        return "requeue" if requeue else "wait" if terminate else "next", again

    def _after_failure(self, ended: Ended) -> bool:
        """Whether a run has failed for good."""
        from sweep.launch.failures import failed_for_good
        from sweep.record import read_status

        status = read_status(self.pack.run_dir(ended.run_id))
        if final := not ended.retry or status is None or failed_for_good(status, self.pack.retries):
            self.failed = True
            if reason := self._hopeless():
                self._stop(reason)
        return final

    def _left(self) -> bool:
        return any(self._wanted(run_id) for run_id, _ in self.pack.runs)

    def _wanted(self, run_id: str) -> bool:
        """Whether a run is to be trained now. False for all of them once the sweep was stopped."""
        from sweep.launch.failures import failed_for_good
        from sweep.launch.freeze import has_result
        from sweep.record import read_status

        folder = self.pack.run_dir(run_id)
        if (Path(self.pack.sweep_dir) / FOLDER / STOPPED_FILE).exists() or _cancelled(folder):
            return False
        status = read_status(folder)
        if status is None or has_result(folder):
            return status is None
        ours = (status.get("claim") or [None])[0] == self.pack.submission  # else somebody has asked for it again
        if ours and failed_for_good(status, self.pack.retries):
            self.failed = True
            return False
        return True

    def _has_failed(self, run_id: str) -> bool:
        """Whether an attempt of this submission at a run has failed."""
        from sweep.launch.failures import failed_attempts
        from sweep.record import read_status

        status = read_status(self.pack.run_dir(run_id)) or {}
        return (status.get("claim") or [None])[0] == self.pack.submission and failed_attempts(status) > 0

    def _hopeless(self) -> str | None:
        """Why the sweep should stop, as far as the runs that have ended in this submission say."""
        from sweep.launch.failures import common_failure, ended_for_good

        ended: list[tuple[str, str | None]] = []
        for entry in os.scandir(Path(self.pack.sweep_dir) / RUNS_DIR):
            status = read(Path(entry.path) / STATUS_FILE)
            ended += ended_for_good([status] if "status" in status else [], self.pack.retries, self.pack.submission)
            if ended and ended[-1][0] != "failed":
                return None
        return common_failure(ended, self.pack.stop_after)

    def _stop(self, reason: str) -> None:
        from sweep.atomic import write_json

        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(Path(self.pack.sweep_dir) / FOLDER / STOPPED_FILE, {"reason": reason, "when": when})
        _say(f"the sweep stops: {reason}")

    def _judge_progress(self) -> Standing:
        """Compare the runs with how they stood when the job started before, and take what it is at to have failed where
        nothing has moved for several starts: a run for good, a stack so that its runs are tried one by one. Returns how
        they stand."""
        standing = Standing.now(self._notes, [self.pack.run_dir(run_id) for run_id, _ in self.pack.runs])
        due = next(filter(None, map(self._due, self.groups)), None)
        if standing.idle >= STARTS_WITHOUT_PROGRESS and due:
            error = (
                f"no progress within the time limit of {self.pack.minutes} minutes in {standing.idle + 1} starts of "
                "its job; raise launcher.time_limit_minutes"
            )
            for run in due[0]:
                self._fail(run.run_id, error, retry=len(due[0]) > 1)
            return self._judge_progress()
        if self.pack.claim[1]:
            standing.note()
        return standing

    @property
    def _notes(self) -> Path:
        """Where a job that starts again finds how its runs stood before."""
        job = os.environ.get("SLURM_JOB_ID", "0")
        return job_folder(Path(self.pack.sweep_dir), self.pack.submission) / f"{job}.progress"

    def _fail(self, run_id: str, error: str, retry: bool = False) -> None:
        from sweep.lease import hold
        from sweep.record import RunRecord

        _say(f"{run_id}  failed  {error}")
        self.failed = self.failed or not retry
        with hold(self.pack.run_dir(run_id), "run", self.pack.claim) as lease:
            RunRecord(self.pack.run_dir(run_id), lease).fail(error, retry=retry)

    def _wait_for_the_end(self) -> None:
        """After SIGTERM: what was cancelled is killed soon. What is not killed was preempted with longer grace, and a
        job that ended by itself within it would not be queued again."""
        _say("saved; waiting to be killed")
        deadline = time.monotonic() + self.pack.kill_wait + KILL_SLACK_SECONDS
        while time.monotonic() < deadline and not self.interruptions.requeue:
            time.sleep(0.2)


@dataclass(frozen=True)
class _Report:
    """Prints a line for every evaluation and every end of a run."""

    steps: dict[str, int]  # of each run

    def __call__(self, message: Evaluated | Ended) -> None:
        from sweep.launch.attempt import Evaluated

        if isinstance(message, Evaluated):
            row, steps = message.row, self.steps[message.run_id]
            _say(f"{message.run_id}  step {row['step']}/{steps}  test loss {row['test_loss']:.4f}")
        else:
            _say(f"{message.run_id}  {message.status}" + f"  {message.error}" * bool(message.error))


def _cancelled(folder: Path) -> bool:
    """Whether somebody has asked that the run in `folder` be not trained."""
    return (folder / CANCEL_FILE).exists()


def _missing(corpus: Path, device: str) -> str | None:
    """What this node lacks for a run, or None."""
    from sweep.corpus import CORPUS_FILE

    host = platform.node()
    if not (corpus / CORPUS_FILE).exists():
        return (
            f"no token files at {corpus} on {host}; keep them in a folder that all nodes share: set data.cache_dir, or "
            "ISOLOSS_CACHE before isoloss sweep"
        )
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            return (
                f"torch {torch.__version__} finds no CUDA device on {host}; take a Python with CUDA (launcher.setup, "
                "launcher.python), or launcher.device=cpu"
            )
    return None


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk costs a line of the log only
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
