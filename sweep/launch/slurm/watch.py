"""Staying with a sweep whose runs are trained by SLURM's jobs: looks at the records and the queue, touches neither."""

from __future__ import annotations

import time
from collections import Counter

from sweep.launch.freeze import FINISHED, Frozen
from sweep.launch.local import Outcome
from sweep.launch.progress import Progress
from sweep.spec import PlannedRun
from sweep.status import RunStatus, SweepStatus, sweep_status

LOOK_SECONDS = 2.0  # between two looks at least
LOOK_SHARE = 0.1  # of the time that may go into looking, which takes a second for 10,000 runs


def watch(frozen: Frozen, left: list[PlannedRun]) -> Outcome:
    """Show progress until no job has a run of the sweep left to train. `left` are the runs that were unfinished."""
    by_id = {run.run_id: run for run in left}
    told: set[str] = set()
    quiet = 0  # looks in a row that found nothing to wait for
    with Progress(frozen, left) as progress:
        while True:
            started = time.monotonic()
            state = sweep_status(frozen.sweep_dir)
            quiet = 0 if any(_awaited(run) for run in state.runs) else quiet + 1
            # On a shared file system a record may be seen seconds after the end of its job.
            ended = quiet > 1 or (quiet and all(run.status in FINISHED for run in state.runs))
            for run in state.runs:
                if run.run_id in by_id and run.run_id not in told:
                    _show(progress, by_id[run.run_id], run)
                    if ended or run.status in FINISHED or (run.shown in ("failed", "cancelled") and not _awaited(run)):
                        progress.ended(by_id[run.run_id], run.shown, run.error)
                        told.add(run.run_id)
            if ended:
                return _outcome(state)
            time.sleep(max(LOOK_SECONDS, (time.monotonic() - started) / LOOK_SHARE))


def _awaited(run: RunStatus) -> bool:
    """Whether some job has yet to train it, as far as is known."""
    if run.status in FINISHED or run.shown == "cancelled":
        return False
    return run.active or (run.job is not None and run.job.live is not False)


def _show(progress: Progress, planned: PlannedRun, run: RunStatus) -> None:
    if run.steps_done:
        flops = planned.costs["flops"] * run.steps_done / planned.spec.steps
        progress.evaluated(planned, {"flops": flops, "test_loss": run.test_loss})


def _outcome(state: SweepStatus) -> Outcome:
    errors = {run.run_id: run.error or run.shown for run in state.runs if run.shown in ("failed", "lost")}
    return Outcome(Counter(run.shown for run in state.runs), errors, hopeless=state.stopped)
