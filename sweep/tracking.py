"""Weights & Biases as a mirror of the record, never the record: live while a run trains, or at any later time from the
run directories. Its failures are reported in one line and never reach the run. `wandb_run` has the content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig
from sweep.lease import is_held
from sweep.record import read_record, read_run, run_dirs
from sweep.schema import PLAN_FILE, RUNS_DIR, SPEC_FILE, InputError
from sweep.spec import Execution, PlannedRun, Source
from sweep.wandb_run import Destination, WandbRun, is_mirrored


class Mirror:
    """Starts the trackers of one process. With no tracking it starts silent ones."""

    def __init__(self, tracking: TrackingConfig, say: Callable[[str], None] = print) -> None:
        self.destination = Destination.from_config(tracking) if tracking.name == "wandb" else None
        self.say = say

    def start(self, planned: PlannedRun, run_dir: Path) -> Tracker:
        """The tracker of one run about to be trained."""
        return Tracker(self, planned, run_dir)

    def failed(self, error: Exception) -> None:
        """Say what went wrong, once, and write offline from now on, since the network is the likely cause."""
        if self.destination is None:
            return
        offline = self.destination.mode == "offline"
        self.say(
            f"W&B: {type(error).__name__}: {' '.join(str(error).split())[:200]}; "
            + ("not mirrored" if offline else "offline from now on")
            + ", isoloss sync completes it from the record"
        )
        self.destination = None if offline else replace(self.destination, mode="offline")


class Tracker:
    """Mirrors one run live. It starts with the run's first evaluation, when the record is open."""

    def __init__(self, mirror: Mirror, planned: PlannedRun, run_dir: Path) -> None:
        self.mirror, self.planned, self.run_dir = mirror, planned, run_dir
        self.run: WandbRun | None = None
        self.dead = mirror.destination is None

    def evaluation(self, row: dict[str, Any]) -> None:
        """An evaluation has been reached; `row` has the keys of the record's metrics."""
        if self.dead:
            return
        try:
            if self.run is None:
                assert self.mirror.destination is not None
                self.run = WandbRun(self.mirror.destination, self.planned, self.run_dir)
                for earlier in read_record(self.run_dir).rows:  # of before this process resumed the run
                    if earlier["step"] < row["step"]:
                        self.run.log(earlier)
            self.run.log(row)
        except Exception as error:
            self.dead = True
            self.mirror.failed(error)

    def finish(self, status: str) -> None:
        """The run has ended for now with `status`. Where W&B has failed since this tracker began it is not waited for
        again."""
        if self.dead or self.run is None or self.run.destination != self.mirror.destination:
            return
        try:
            if problem := self.run.finish(status):
                self.mirror.say(f"W&B: left out: {problem}")
        except Exception as error:
            self.mirror.failed(error)


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did: run_ids."""

    written: list[str]
    current: list[str]  # mirrored completely before
    active: list[str]  # being trained now, so left to their own tracker
    damaged: list[str]  # what cannot be read, and where
    destination: Destination


def sync(sweep_dir: Path, destination: Destination, say: Callable[[str], None] = print) -> SyncResult:
    """Create or complete the W&B run of every record in `sweep_dir`; doing it again changes nothing.

    Raises InputError where there is no record, OSError or W&B's own errors where W&B cannot be written.
    """
    folders = run_dirs(sweep_dir)
    if not folders:
        raise InputError(f"{sweep_dir} holds no records to mirror ({RUNS_DIR}/RUN_ID/{SPEC_FILE})")
    plan = _plan(sweep_dir)
    result = SyncResult([], [], [], [], destination)
    for run_dir in folders:
        if is_held(run_dir):
            result.active.append(run_dir.name)
            continue
        try:
            record = read_run(sweep_dir, run_dir.name)
        except InputError as error:
            result.damaged.append(str(error))
            continue
        status = record.status["status"]
        if is_mirrored(run_dir, destination, len(record.rows), status):
            result.current.append(record.run_id)
            continue
        run = WandbRun(destination, plan.get(record.run_id) or PlannedRun(record.spec, Source(), Execution()), run_dir)
        for row in record.rows:
            run.log(row)
        if problem := run.finish(status):
            result.damaged.append(problem)
        result.written.append(record.run_id)
        say(f"{record.run_id}  {status}  {len(record.rows)} evaluations")
    return result


def _plan(sweep_dir: Path) -> dict[str, PlannedRun]:
    from sweep.plan import read_plan

    path = sweep_dir / PLAN_FILE
    return {planned.run_id: planned for planned in read_plan(path)} if path.exists() else {}
