"""One attempt at the runs of one group: each under its own lease, with its end in its own record."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.atomic import full
from sweep.holder import Claim, Holder
from sweep.lease import Lease, LeaseLost, take
from sweep.schema import InputError
from sweep.spec import PlannedRun
from sweep.world import SINGLE, PeerFailed, World

if TYPE_CHECKING:
    from sweep.session import Member
    from sweep.tracking import Mirror, Tracker

WAIT_SECONDS = 60.0  # for who holds a run directory to end, which may be an attempt that writes its last checkpoint


@dataclass(frozen=True)
class Task:
    """One run to train."""

    planned: PlannedRun
    run_dir: Path
    failures: int = 0  # of this run before, in this call; a SLURM job reads them from the record

    @property
    def run_id(self) -> str:
        """The run's."""
        return self.planned.run_id


@dataclass(frozen=True)
class Job:
    """The runs of one group, to be trained as one stack."""

    runs: tuple[Task, ...]
    corpus: Path  # directory of their token files


@dataclass(frozen=True)
class Evaluated:
    """A run has reached an evaluation; `row` has the keys of the record's metrics."""

    run_id: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A run has ended with `status`; `running` where it was stopped and can be resumed."""

    run_id: str
    status: str
    error: str | None = None
    retry: bool = True  # whether trying again may help


Report = Callable[[Evaluated | Ended], None]


def train_job(
    job: Job,
    device: str,
    mirror: Mirror,
    report: Report,
    claim: Claim | None = None,
    world: World = SINGLE,
    unwanted: Callable[[Task], bool] | None = None,
) -> list[Ended]:
    """Train the runs of a job as one stack, each alone on its run directory, and turn whatever goes wrong into recorded
    statuses. Returns how they have ended, in the job's order; `report` hears it, and their evaluations, at once.

    A run that has a result is left as it is; one that somebody else trains fails, and the others go on without it, as
    they do without one of which `unwanted` says that it is to leave. An error that is not one run's alone fails all
    that have not ended. Rank 0 of the world takes the leases and says to the others whether to go on; a rank that fails
    says so in the record. Where `world.broken`, its processes have to end.
    """
    attempt = _Attempt(job, mirror, report, claim, world)
    try:
        attempt.enter()
        if attempt.open:
            attempt.train(job.corpus, device, unwanted)
    finally:
        attempt.release()
    return [attempt.ended[task.run_id] for task in job.runs]


class _Attempt:
    """What becomes of the runs of one job, in this process."""

    def __init__(self, job: Job, mirror: Mirror, report: Report, claim: Claim | None, world: World) -> None:
        self.mirror, self.report, self.claim, self.world = mirror, report, claim, world
        self.open = {task.run_id: task for task in job.runs}  # that have not ended
        self.leases: dict[str, Lease] = {}  # of these
        self.trackers: dict[str, Tracker] = {}  # of these, on rank 0
        self.ended: dict[str, Ended] = {}

    def enter(self) -> None:
        """Take the leases. Runs that have nothing to do, or that cannot be had, end."""
        out = self._take_all() if self.world.rank == 0 else []
        held = {run_id: lease.number for run_id, lease in self.leases.items()}
        out, held = self.world.broadcast((out, held))
        for run_id in held.keys() - self.leases.keys():  # rank 0's, which this rank writes under
            holder = Holder.this_process(self.claim)
            self.leases[run_id] = Lease(self.open[run_id].run_dir, held[run_id], holder)
        for ended in out:
            self._close(ended)

    def train(self, corpus: Path, device: str, unwanted: Callable[[Task], bool] | None) -> None:
        """Train the runs that are open, to their ends."""
        from sweep.corpus import open_corpus
        from sweep.train import train_runs

        try:
            with self.world.together():
                members = [self._member(task, unwanted) for task in self.open.values()]
                train_runs(members, open_corpus(corpus), device, self._member_ended, self.world)
        except Exception as error:
            for run_id in list(self.open):
                self._fail(run_id, error)

    def release(self) -> None:
        """Give up the leases of runs that are open still, for an interruption."""
        if self.world.rank == 0:
            for lease in self.leases.values():
                lease.release()

    def _take_all(self) -> list[Ended]:
        """Take the leases side by side, since each may have to wait for its holder; how runs end that go without."""
        if len(self.open) == 1:
            found = [self._take(task) for task in self.open.values()]
        else:
            with ThreadPoolExecutor(len(self.open)) as threads:
                found = list(threads.map(self._take, self.open.values()))
        return [ended for ended in found if ended]

    def _take(self, task: Task) -> Ended | None:
        """Take the lease of a run with something to do; else returns how the run has ended without this attempt."""
        from sweep.record import RunRecord, read_status

        try:
            lease = take(task.run_dir, "run", self.claim, WAIT_SECONDS)
        except LeaseLost:
            return _superseded(task.run_id)
        except (OSError, InputError) as error:  # the run directory itself is unusable, so the record cannot say so
            return Ended(task.run_id, "failed", one_line(error), retry=False)
        try:
            record = RunRecord(task.run_dir, lease)
            if finished := record.adopt():
                lease.release()
                return Ended(task.run_id, finished)
            before = read_status(task.run_dir) or {}
            same = self.claim is not None and (before.get("claim") or [None])[0] == self.claim[0]
            failures = before.get("failures", 0) if same else task.failures
            if before.get("failures", 0) != failures:
                record.set_status(before.get("status", "planned"), failures=failures, halved_in=[])
        except LeaseLost:
            return _superseded(task.run_id)
        except OSError as error:
            lease.release()
            return Ended(task.run_id, "failed", one_line(error), retry=False)
        self.leases[task.run_id] = lease
        return None

    def _member(self, task: Task, unwanted: Callable[[Task], bool] | None) -> Member:
        from sweep.session import Member

        lease = self.leases[task.run_id]
        if self.world.rank:
            return Member(task.planned, task.run_dir, lease)
        tracker = self.trackers[task.run_id] = self.mirror.start(task.planned, task.run_dir)

        def report(row: dict[str, Any]) -> None:
            tracker.evaluation(row)
            self.report(Evaluated(task.run_id, row))

        return Member(task.planned, task.run_dir, lease, report, partial(unwanted, task) if unwanted else None)

    def _member_ended(self, member: Member, outcome: str | Exception) -> None:
        run_id = member.planned.run_id
        if isinstance(outcome, Exception):
            self._fail(run_id, outcome)
        else:
            self._close(Ended(run_id, outcome))

    def _fail(self, run_id: str, error: Exception) -> None:
        """An attempt at a run has ended in `error`, which its record says from now on."""
        from sweep.record import RunRecord

        if isinstance(error, LeaseLost):
            return self._close(_superseded(run_id))
        ended = Ended(run_id, "failed", one_line(error), retry=not (isinstance(error, InputError) or full(error)))
        whole = None if isinstance(error, InputError | PeerFailed) else "".join(traceback.format_exception(error))
        try:
            record = RunRecord(self.open[run_id].run_dir, self.leases[run_id])
            record.fail(ended.error or "", whole, ended.retry)
            if self.world.rank == 0:
                record.identify(self.open[run_id].planned)  # the attempt may not have come so far
        except LeaseLost:
            ended = _superseded(run_id)
        except (OSError, InputError):  # the record cannot say so; the launcher does
            pass
        self._close(ended)

    def _close(self, ended: Ended) -> None:
        """A run has ended for this process."""
        del self.open[ended.run_id]
        self.ended[ended.run_id] = ended
        if tracker := self.trackers.pop(ended.run_id, None):
            tracker.finish(ended.status)
        lease = self.leases.pop(ended.run_id, None)
        if self.world.rank == 0:
            if lease:
                lease.release()
            self.report(ended)


def _superseded(run_id: str) -> Ended:
    return Ended(run_id, "running", "superseded by a later attempt", retry=False)


def one_line(error: BaseException) -> str:
    """An exception's type and message on one line of at most 500 characters; the message alone where it is meant for
    people."""
    name = "" if isinstance(error, InputError | PeerFailed) else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())}"[:500]
