"""A worker process: imports the training code once, then trains one run after another from its launcher's pipe."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import TrackingConfig
from sweep.lease import hold
from sweep.schema import InputError
from sweep.spec import PlannedRun

if TYPE_CHECKING:
    from sweep.tracking import Mirror

TRACEBACK_FILE = "error.txt"  # in the run directory: the whole of the last exception


@dataclass(frozen=True)
class Job:
    """One run to train. Launcher to worker; None instead of a job ends the worker."""

    planned: PlannedRun
    run_dir: Path
    corpus: Path  # directory of the token files


@dataclass(frozen=True)
class Ready:
    """Worker to launcher: imports are done, or the run before has ended."""


@dataclass(frozen=True)
class Evaluated:
    """Worker to launcher: a run has reached an evaluation. `row` has the keys of the record's metrics."""

    row: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """Worker to launcher: a run has ended with `status`; `running` where it was stopped and can be resumed."""

    status: str
    error: str | None = None
    retry: bool = True  # whether trying again may help


def main(pipe: Connection, device: str, threads: int, tracking: TrackingConfig) -> None:
    """Train the jobs from `pipe` on `device` until None arrives, a run on a GPU fails, or the launcher is gone."""
    _follow_launcher()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        os.environ[name] = "false" if name.startswith("TOKENIZERS") else str(threads)
    import sweep.train  # noqa: F401  (seconds of imports, before the first job is asked for)
    from sweep.tracking import Mirror

    mirror = Mirror(tracking)
    with contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(Ready())
        while (job := pipe.recv()) is not None:
            ended = train_job(job, device, mirror, lambda row: _report(pipe, row))
            pipe.send(ended)
            if ended.status == "running" or (ended.status == "failed" and device != "cpu"):
                break  # a stopped sweep wants no further run; an error may have left a GPU unusable to this process
            pipe.send(Ready())


def train_job(job: Job, device: str, mirror: Mirror, on_evaluation: Callable[[dict[str, Any]], None]) -> Ended:
    """Train one run, alone on its run directory, and turn whatever goes wrong into a recorded status."""
    from sweep.record import write_status

    try:
        with hold(job.run_dir, "run", wait_seconds=60.0):
            try:
                return Ended(_train(job, device, mirror, on_evaluation))
            except InputError as error:
                write_status(job.run_dir, "failed", error=str(error))
                return Ended("failed", str(error), retry=False)
            except Exception as error:
                message = one_line(error)
                (job.run_dir / TRACEBACK_FILE).write_text(traceback.format_exc())
                write_status(job.run_dir, "failed", error=message)
                return Ended("failed", message)
    except (OSError, InputError) as error:  # the run directory itself is unusable, so the record cannot say so
        return Ended("failed", one_line(error), retry=False)


def _train(job: Job, device: str, mirror: Mirror, on_evaluation: Callable[[dict[str, Any]], None]) -> str:
    from sweep.corpus import open_corpus
    from sweep.train import train_run

    tracker = mirror.start(job.planned, job.run_dir)

    def report(row: dict[str, Any]) -> None:
        tracker.evaluation(row)
        on_evaluation(row)

    status = "failed"
    try:
        status = train_run(job.planned, job.run_dir, open_corpus(job.corpus), device, on_evaluation=report)
    finally:
        tracker.finish(status)
    return status


def _report(pipe: Connection, row: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone; _follow_launcher stops the run
        pipe.send(Evaluated(row))


def one_line(error: BaseException) -> str:
    """An exception's type and message on one line of at most 500 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _follow_launcher() -> None:
    """Leave Ctrl-C to the launcher, which asks for a checkpoint with SIGTERM; ask for it ourselves if it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = parent_process()
    assert launcher is not None, "a worker is started by a launcher"

    def wait() -> None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
