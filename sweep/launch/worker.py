"""A worker process: imports the training code once, then trains one run after another from its launcher's pipe."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.atomic import full
from sweep.config import TrackingConfig
from sweep.holder import Claim, Holder
from sweep.lease import Lease, LeaseLost, take
from sweep.schema import InputError
from sweep.spec import PlannedRun
from sweep.world import SINGLE, PeerFailed, World

if TYPE_CHECKING:
    from sweep.tracking import Mirror


@dataclass(frozen=True)
class Job:
    """One run to train. Launcher to worker; None instead of a job ends the worker."""

    planned: PlannedRun
    run_dir: Path
    corpus: Path  # directory of the token files
    failures: int = 0  # of this run before, in this call; a SLURM job reads them from the record


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


SUPERSEDED = Ended("running", "superseded by a later attempt", retry=False)


def train_job(
    job: Job,
    device: str,
    mirror: Mirror,
    on_evaluation: Callable[[dict[str, Any]], None],
    claim: Claim | None = None,
    world: World = SINGLE,
) -> Ended:
    """Train one run, alone on its run directory, and turn whatever goes wrong into a recorded status.

    A run that has a result is left as it is. Rank 0 of the world takes the lease and says to the others whether to go
    on; a rank that fails says so in the record. Where `world.broken`, its processes have to end.
    """
    lease, ended = _enter(job, claim) if world.rank == 0 else (None, None)
    number, ended = world.broadcast((None if lease is None else lease.number, ended))
    if ended is not None or number is None:
        return ended or SUPERSEDED
    guard = lease or Lease(job.run_dir, number, Holder.this_process(claim))
    try:
        return _attempt(job, device, mirror, on_evaluation, guard, world)
    except LeaseLost:
        return SUPERSEDED
    finally:
        if lease:
            lease.release()


def _enter(job: Job, claim: Claim | None) -> tuple[Lease | None, Ended | None]:
    """The lease of a run with something to do, or how the run has ended without this attempt."""
    from sweep.record import RunRecord, read_status

    try:
        lease = take(job.run_dir, "run", claim, wait_seconds=60.0)
    except (OSError, InputError) as error:  # the run directory itself is unusable, so the record cannot say so
        return None, Ended("failed", one_line(error), retry=False)
    try:
        record = RunRecord(job.run_dir, lease)
        if finished := record.adopt():
            lease.release()
            return None, Ended(finished)
        before = read_status(job.run_dir) or {}
        same = claim is not None and (before.get("claim") or [None])[0] == claim[0]
        failures = before.get("failures", 0) if same else job.failures
        if before.get("failures", 0) != failures:
            record.set_status(before.get("status", "planned"), failures=failures, halved_in=[])
        return lease, None
    except LeaseLost:
        return None, SUPERSEDED
    except OSError as error:
        lease.release()
        return None, Ended("failed", one_line(error), retry=False)


def _attempt(
    job: Job,
    device: str,
    mirror: Mirror,
    on_evaluation: Callable[[dict[str, Any]], None],
    lease: Lease,
    world: World,
) -> Ended:
    from sweep.record import RunRecord

    try:
        with world.together():
            return Ended(_train(job, device, mirror, on_evaluation, lease, world))
    except LeaseLost:
        raise
    except Exception as error:
        ended = Ended("failed", one_line(error), retry=not (isinstance(error, InputError) or full(error)))
        whole = None if isinstance(error, InputError | PeerFailed) else traceback.format_exc()
        with contextlib.suppress(OSError, InputError):  # the record cannot say so; the launcher does
            record = RunRecord(job.run_dir, lease)
            record.fail(ended.error or "", whole, ended.retry)
            if world.rank == 0:
                record.identify(job.planned)  # the attempt may not have come so far
        return ended


def _train(
    job: Job,
    device: str,
    mirror: Mirror,
    on_evaluation: Callable[[dict[str, Any]], None],
    lease: Lease,
    world: World,
) -> str:
    from sweep.corpus import open_corpus
    from sweep.train import train_run

    train = partial(train_run, job.planned, job.run_dir, open_corpus(job.corpus), device, lease=lease, world=world)
    if world.rank != 0:
        return train()
    tracker = mirror.start(job.planned, job.run_dir)

    def report(row: dict[str, Any]) -> None:
        tracker.evaluation(row)
        on_evaluation(row)

    status = "failed"
    try:
        status = train(on_evaluation=report)
    except LeaseLost:
        status = "running"
        raise
    finally:
        tracker.finish(status)
    return status


def _report(pipe: Connection, row: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone; _follow_launcher stops the run
        pipe.send(Evaluated(row))


def one_line(error: BaseException) -> str:
    """An exception's type and message on one line of at most 500 characters; the message alone where it is meant for
    people."""
    name = "" if isinstance(error, InputError | PeerFailed) else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())}"[:500]


def _follow_launcher() -> None:
    """Leave Ctrl-C to the launcher, which asks for a checkpoint with SIGTERM; ask for it ourselves if it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = parent_process()
    assert launcher is not None, "a worker is started by a launcher"

    def wait() -> None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
