"""Verbs for what was submitted to a cluster: cancel, resubmit, logs; and `isoloss sweep launcher=slurm`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.schema import PLAN_FILE, InputError
from sweep.verbs.common import Parser, RunsFailed, counted, quoted

if TYPE_CHECKING:
    from sweep.config import TrackingConfig
    from sweep.launch.freeze import Frozen
    from sweep.launch.local import Outcome
    from sweep.launch.slurm.submission import Submission
    from sweep.launcher import SlurmLauncher
    from sweep.spec import PlannedRun


def cancel(argv: list[str]) -> int:
    """Cancel jobs, or single runs."""
    parser = Parser(
        "cancel",
        "Cancel what SLURM still has of a sweep, or only some runs: a job that trains others too goes on with those.\n"
        "Runs that are cancelled keep their checkpoints; the sweep's own command submits them again.",
        "isoloss cancel sweeps/quick",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run_id or its start (default: all runs)")
    options = parser.parse_args(argv)
    from sweep.launch.slurm.cancel import cancel
    from sweep.lease import hold
    from sweep.run_dir import matching

    known = _run_ids(options.sweep_dir)
    wanted = [matching(known, run) for run in options.runs] or None
    with hold(options.sweep_dir, "sweep"):  # nobody is submitting meanwhile
        done = cancel(options.sweep_dir, wanted)
    for run_id in done.without_job:
        print(f"{run_id}: nothing to cancel; it has a result, is cancelled, or is in no job that lives")
    for run_id in done.shared:
        print(f"{run_id} is cancelled; its job goes on with other runs")
    print(f"{options.sweep_dir}: {counted(len(done.jobs), 'job')} and {counted(len(done.runs), 'run')} cancelled")
    return 0


def resubmit(argv: list[str]) -> int:
    """Submit failed and lost runs again."""
    parser = Parser(
        "resubmit",
        "Submit again the runs of a sweep that have failed or whose jobs are lost, with the launcher's settings of\n"
        "the last submission, or some of them changed. They go on from their checkpoints.",
        "isoloss resubmit sweeps/quick launcher.time_limit_minutes=120",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("overrides", nargs="*", metavar="launcher.key=value", help="other settings for these jobs")
    options = parser.parse_args(argv)
    from sweep.launch.freeze import freeze
    from sweep.launch.slurm.resubmit import failed_or_lost, last_settings
    from sweep.lease import hold
    from sweep.plan import read_plan
    from sweep.status import sweep_status

    sweep_dir = options.sweep_dir
    launcher, tracking = last_settings(sweep_dir, options.overrides)
    with hold(sweep_dir, "sweep"):
        state = sweep_status(sweep_dir)
        again = set(failed_or_lost(state))
        if not again:
            print(f"{sweep_dir}: no run has failed or is lost")
            if cancelled := state.counts.get("cancelled"):
                print(f"{counted(cancelled, 'run')} cancelled, which the sweep's own command submits again")
            return 0
        plan, shown = read_plan(sweep_dir / PLAN_FILE), sys.stdout.isatty()
        frozen = freeze(sweep_dir, plan, shown, stack=launcher.stack == "on")
        _submit(frozen, [run for run in frozen.runs if run.run_id in again], launcher, tracking)
    return 0


def logs(argv: list[str]) -> int:
    """Show what a run has printed."""
    parser = Parser(
        "logs",
        "Where the output of a run lies: its jobs and their logs, the end of the last one, and the traceback of its\n"
        "last error.",
        "isoloss logs sweeps/quick 4bb2 --lines 50",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("run", metavar="RUN", help="a run_id or its start")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="of the last log (default: 20)")
    options = parser.parse_args(argv)
    if options.lines < 0:
        raise InputError(f"--lines must not be negative, but is {options.lines}")
    from sweep.launch.slurm.logs import describe
    from sweep.run_dir import matching

    run_id = matching(_run_ids(options.sweep_dir), options.run)
    for line in describe(options.sweep_dir, run_id, options.lines):
        print(line)
    return 0


def sweep(frozen: Frozen, launcher: SlurmLauncher, tracking: TrackingConfig) -> None:
    """Submit what is left of a sweep and say so. To be called while holding the sweep's lease."""
    left = frozen.unfinished()
    if left:
        _submit(frozen, left, launcher, tracking)
    else:
        print(f"{frozen.sweep_dir}: all {len(frozen.runs)} runs have results")


def wait(frozen: Frozen) -> Outcome:
    """Stay with the sweep until no job has anything left to do. Ctrl-C leaves the jobs alone."""
    from sweep.launch.slurm.watch import watch

    try:
        return watch(frozen, frozen.unfinished())
    except KeyboardInterrupt:
        raise RunsFailed(
            f"no longer watched, the jobs go on: isoloss status {quoted(frozen.sweep_dir)} shows them, isoloss "
            f"cancel {quoted(frozen.sweep_dir)} ends them"
        ) from None


def _submit(frozen: Frozen, runs: list[PlannedRun], launcher: SlurmLauncher, tracking: TrackingConfig) -> None:
    from sweep.launch.slurm.submit import submit

    submission = submit(frozen, runs, launcher, tracking, ["isoloss", *sys.argv[1:]])
    if submission is None:
        print(f"{frozen.sweep_dir}: the jobs that live have all {len(runs)} runs that are left; nothing is submitted")
    else:
        for line in _submitted(submission, launcher, len(runs)):
            print(line)
    print(f"next: isoloss status {quoted(frozen.sweep_dir)}", flush=True)


def _submitted(submission: Submission, launcher: SlurmLauncher, asked: int) -> Iterator[str]:
    """What a person wants to know of jobs just submitted."""
    from sweep.launch.slurm.resources import LEAST_MINUTES, START_UP_SECONDS
    from sweep.plan import duration

    arrays = Counter(element.array_id for element in submission.elements)
    runs = sum(len(element.run_ids) for element in submission.elements)
    jobs = counted(len(submission.elements), "job")
    at_a_time = f", {launcher.parallel} at a time" * (len(submission.elements) > launcher.parallel)
    yield f"submitted {counted(runs, 'run')} in {jobs}{at_a_time}"
    if asked > runs:
        yield f"  {counted(asked - runs, 'other run')} in jobs that live"
    for array, size in arrays.items():
        yield f"  job {array}" + (f", an array of {size}" if size > 1 else "")
    longest = max(element.seconds for element in submission.elements)
    basis = "as launcher.time_limit_minutes says"
    if launcher.time_limit_minutes is None:
        estimate = duration(longest + START_UP_SECONDS)
        basis = (
            f"launcher.time_margin {launcher.time_margin:g} times {estimate}, estimated for the longest job, "
            f"{LEAST_MINUTES} at least and launcher.max_minutes {launcher.max_minutes} at most, with the time to save"
        )
    shorter = "; less for shorter jobs" * (len(arrays) > 1 and launcher.time_limit_minutes is None)
    yield f"time limit {submission.minutes} minutes, {basis}{shorter}"


def planned_jobs(runs: list[PlannedRun], launcher: SlurmLauncher) -> str:
    """One line: the jobs that a submission of the whole plan would be, and what they would be charged."""
    from sweep.launch.slurm.packing import pack_runs
    from sweep.launch.slurm.resources import START_UP_SECONDS, time_limit

    seconds = {run.run_id: run.costs["seconds"] for run in runs}
    packs = [members for level in pack_runs(runs, seconds, 60.0 * launcher.pack_minutes) for members in level]
    lengths = [START_UP_SECONDS + sum(seconds[run.run_id] for run in members) for members in packs]
    minutes = time_limit(launcher, max(lengths) - START_UP_SECONDS)
    number, kind = launcher.gpus_per_run, "GPU"
    if not number:
        number, kind = launcher.ranks_per_run * launcher.threads, "CPU"
    hours = number * sum(lengths) / 3600
    return (
        f"{counted(len(packs), 'job')} of at most {minutes} minutes, about {hours:.2g} {kind}-hours with "
        f"{START_UP_SECONDS:.0f} s for the start of each"
    )


def _run_ids(sweep_dir: Path) -> list[str]:
    from sweep.status import plan_lines

    path = sweep_dir / PLAN_FILE
    if not path.exists():
        raise InputError(f"{sweep_dir} is not a sweep directory: it has no {PLAN_FILE}")
    return [run.run_id for run, _ in plan_lines(path)]
