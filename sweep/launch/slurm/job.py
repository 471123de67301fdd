"""What a job does: trains its runs one after another in one process, or in several that share each run.

It ends with exit code 0 where its runs have results, 1 where one has failed, and REQUEUE where it wants to be queued
again, which the lines of its script after this do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweep.config import TrackingConfig
from sweep.launch.slurm.interrupt import Interruptions
from sweep.launch.slurm.resources import REQUEUE, again_file
from sweep.launch.slurm.submission import CANCEL_FILE, FOLDER, STOPPED_FILE, job_folder
from sweep.run_dir import run_dir
from sweep.schema import PLAN_FILE, RUNS_DIR, STATUS_FILE
from sweep.spec import PlannedRun

if TYPE_CHECKING:
    from sweep.launch.worker import Ended
    from sweep.world import World

STARTS_WITHOUT_PROGRESS = 2  # after the first, until a job's current run is given up
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
        """A run as the plan has it."""
        from sweep.ladder import micro_batch
        from sweep.plan import read_run

        planned = read_run(Path(self.sweep_dir) / PLAN_FILE, offset, run_id)
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
        self.failed = False

    def do(self) -> int:
        """Train the runs; returns the exit code."""
        start = self.world.first(self._judge_progress)
        for run_id, offset in self.pack.runs:
            following: Next = "again"
            while following == "again" and self.world.first(partial(self._wanted, run_id)):
                ended = self._train(run_id, offset)
                if self.world.broken:  # these processes understand each other no more; rank 0 speaks for them
                    return self._apart(run_id, ended) if self.world.rank == 0 else 1
                following = self._after(run_id, ended)
            if following in ("requeue", "wait") and self.world.first(self._left):
                self.world.first(partial(self._note, start))
                if following == "wait":
                    self._wait_for_the_end()
                return REQUEUE
        return 1 if self.failed else 0

    def _apart(self, run_id: str, ended: Ended) -> int:
        """The exit code of rank 0 where another has failed or is gone: afresh, while the run may be tried again. The
        job's exit code may be the other's, so a file says so too."""
        _say(f"{run_id}  {ended.status}  {ended.error}")
        self._after_failure(run_id, ended)
        if not self._left():
            return 1
        again_file(self._notes.parent, self._notes.stem).touch()
        return REQUEUE

    def _train(self, run_id: str, offset: int) -> Ended:
        from sweep.launch.worker import Ended, Job, train_job

        pack, folder = self.pack, self.pack.run_dir(run_id)
        planned = pack.planned(run_id, offset)
        corpus = Path(pack.corpora[planned.data_hash or ""])
        if missing := next(filter(None, self.world.each(partial(_missing, corpus, self.device))), None):
            self.world.first(partial(self._give_up, run_id, missing))
            return Ended("failed", missing, retry=False)
        unwanted = (folder / CANCEL_FILE).exists if self.world.rank == 0 else None
        self.interruptions.training(unwanted)
        try:
            job = Job(planned, folder, corpus)
            report = _Report(run_id, planned.spec.steps)
            return train_job(job, self.device, self.mirror, report, pack.claim, self.world)
        finally:
            self.interruptions.idle()

    def _after(self, run_id: str, ended: Ended) -> Next:
        """What follows an attempt at a run; the same on all ranks."""
        heard = self.world.most(self.interruptions.requeue, self.interruptions.terminate)
        requeue, terminate = map(bool, heard)
        if self.world.rank == 0:
            _say(f"{run_id}  {ended.status}" + f"  {ended.error}" * bool(ended.error))
        following: Next = "next"
        if ended.status == "failed":
            following = self.world.first(partial(self._after_failure, run_id, ended))
        elif ended.status == "running" and not ended.error:  # asked to stop; not superseded by another attempt
            terminate = terminate or not self.world.first(lambda: self.interruptions.cancelled)
        if requeue:
            return "requeue"
        return "wait" if terminate else following

    def _after_failure(self, run_id: str, ended: Ended) -> Next:
        from sweep.launch.failures import failed_for_good
        from sweep.record import read_status

        status = read_status(self.pack.run_dir(run_id))
        final = not ended.retry or status is None or failed_for_good(status, self.pack.retries)
        if final:
            self.failed = True
            if reason := self._hopeless():
                self._stop(reason)
        if ended.retry and self.device != "cpu":
            return "requeue"  # an error may have left the GPU unusable to this process
        return "next" if final else "again"

    def _left(self) -> bool:
        return any(self._wanted(run_id) for run_id, _ in self.pack.runs)

    def _wanted(self, run_id: str) -> bool:
        """Whether a run is to be trained now. False for all of them once the sweep was stopped."""
        from sweep.launch.failures import failed_for_good
        from sweep.launch.freeze import has_result
        from sweep.record import read_status

        folder = self.pack.run_dir(run_id)
        if (Path(self.pack.sweep_dir) / FOLDER / STOPPED_FILE).exists() or (folder / CANCEL_FILE).exists():
            return False
        status = read_status(folder)
        if status is None or has_result(folder):
            return status is None
        ours = (status.get("claim") or [None])[0] == self.pack.submission  # else somebody has asked for it again
        if ours and failed_for_good(status, self.pack.retries):
            self.failed = True
            return False
        return True

    def _hopeless(self) -> str | None:
        """Why the sweep should stop, as far as the runs that have ended in this submission say."""
        from sweep.launch.failures import common_failure, ended_for_good

        ended: list[tuple[str, str | None]] = []
        for entry in os.scandir(Path(self.pack.sweep_dir) / RUNS_DIR):
            status = _read(Path(entry.path) / STATUS_FILE)
            ended += ended_for_good([status] if "status" in status else [], self.pack.retries, self.pack.submission)
            if ended and ended[-1][0] != "failed":
                return None
        return common_failure(ended, self.pack.stop_after)

    def _stop(self, reason: str) -> None:
        from sweep.atomic import write_json

        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(Path(self.pack.sweep_dir) / FOLDER / STOPPED_FILE, {"reason": reason, "when": when})
        _say(f"the sweep stops: {reason}")

    def _judge_progress(self) -> dict[str, Any]:
        """Compare the runs with how they stood when the job started before, and give the current one up where nothing
        has moved for several starts. Returns how they stand."""
        stand: dict[str, Any] = {"runs": [_stand(self.pack.run_dir(run_id)) for run_id, _ in self.pack.runs]}
        before = _read(self._notes)
        idle = before.get("idle", 0) + 1 if before.get("runs") == stand["runs"] else 0
        if idle >= STARTS_WITHOUT_PROGRESS:
            for run_id in [run_id for run_id, _ in self.pack.runs if self._wanted(run_id)][:1]:
                self._give_up(
                    run_id,
                    f"no progress within the time limit of {self.pack.minutes} minutes in {idle + 1} starts of its "
                    "job; raise launcher.time_limit_minutes",
                )
                return self._judge_progress()
        stand["idle"] = idle
        if self.pack.claim[1]:
            self._note(stand)
        return stand

    @property
    def _notes(self) -> Path:
        """Where a job that starts again finds how its runs stood before."""
        job = os.environ.get("SLURM_JOB_ID", "0")
        return job_folder(Path(self.pack.sweep_dir), self.pack.submission) / f"{job}.progress"

    def _note(self, stand: dict[str, Any]) -> None:
        from sweep.atomic import write_json

        with contextlib.suppress(OSError):  # a full disk costs a run some patience only
            write_json(self._notes, stand)

    def _give_up(self, run_id: str, error: str) -> None:
        from sweep.lease import hold
        from sweep.record import RunRecord

        _say(f"{run_id}  failed  {error}")
        self.failed = True
        with hold(self.pack.run_dir(run_id), "run", self.pack.claim) as lease:
            RunRecord(self.pack.run_dir(run_id), lease).fail(error, retry=False)

    def _wait_for_the_end(self) -> None:
        """After SIGTERM: what was cancelled is killed soon. What is not killed was preempted with longer grace, and a
        job that ended by itself within it would not be queued again."""
        _say("saved; waiting to be killed")
        deadline = time.monotonic() + self.pack.kill_wait + KILL_SLACK_SECONDS
        while time.monotonic() < deadline and not self.interruptions.requeue:
            time.sleep(0.2)


@dataclass(frozen=True)
class _Report:
    """Prints a line for every evaluation of a run."""

    run_id: str
    steps: int

    def __call__(self, row: dict[str, Any]) -> None:
        _say(f"{self.run_id}  step {row['step']}/{self.steps}  test loss {row['test_loss']:.4f}")


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


def _stand(folder: Path) -> list[Any]:
    """How far a run is: what changes with every checkpoint, failure and end."""
    from sweep.schema import CHECKPOINT_DIR

    status = _read(folder / STATUS_FILE)
    ended = status.get("status") if status.get("status") != "running" else None
    checkpoints = sorted(path.name.split("-a")[0] for path in (folder / CHECKPOINT_DIR).glob("step-*.json"))
    return [ended, status.get("failures", 0), checkpoints]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
