"""From a frozen sweep to jobs in the queue: packs of runs as arrays, submitted through submitit and written down."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.config import SlurmLauncher, TrackingConfig
from sweep.estimate import estimate_seconds, machine
from sweep.launch.freeze import Frozen
from sweep.launch.slurm.job import Pack
from sweep.launch.slurm.packing import pack, split
from sweep.launch.slurm.queue import live_elements
from sweep.launch.slurm.resources import Cluster, ask_cluster, check_path, sbatch_parameters, time_limit
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
from sweep.plan import plan_offsets
from sweep.schema import PLAN_FILE, InputError
from sweep.spec import PlannedRun


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
    seconds = {run.run_id: estimate_seconds(run, target, {})[0] for run in runs}
    packs = pack(runs, lambda run: seconds[run.run_id], 60.0 * launcher.pack_minutes)
    minutes = time_limit(launcher, sum(seconds[run.run_id] for run in packs[0]))
    code = take_snapshot(frozen.sweep_dir, launcher.allow_dirty)
    number = reserve(frozen.sweep_dir)
    folder = job_folder(frozen.sweep_dir, number)
    parameters = sbatch_parameters(launcher, minutes, frozen.sweep_dir.name, Path(code["path"]), folder)
    _forget_stops(frozen, runs)
    submission = Submission(
        number=number,
        submitted=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=tuple(argv),
        elements=(),
        minutes=minutes,
        resources={key: value for key, value in parameters.items() if key not in ("setup", "teardown")},
        code=code,
        settings={"launcher": dataclasses.asdict(launcher), "tracking": dataclasses.asdict(tracking)},
        cluster=cluster.name,
    )
    offsets = plan_offsets(frozen.sweep_dir / PLAN_FILE)
    jobs = [
        _pack_of(frozen, members, offsets, target.device, launcher, tracking, submission, cluster) for members in packs
    ]
    for array in split(jobs, cluster.array_size):
        ids = _submit_array(folder, array, launcher, parameters)
        elements = tuple(
            Element(job_id, run_ids, sum(seconds[run_id] for run_id in run_ids))
            for job_id, run_ids in zip(ids, (tuple(run_id for run_id, _ in one.runs) for one in array), strict=True)
        )
        submission = dataclasses.replace(submission, elements=submission.elements + elements)
        write_submission(frozen.sweep_dir, submission)  # after each array, so that none is forgotten
        # the next one waits for this one, so that both together keep to launcher.parallel
        parameters["dependency"] = f"afterany:{elements[0].array_id}"
    return submission


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


def _pack_of(
    frozen: Frozen,
    runs: Sequence[PlannedRun],
    offsets: dict[str, int],
    device: str,
    launcher: SlurmLauncher,
    tracking: TrackingConfig,
    submission: Submission,
    cluster: Cluster,
) -> Pack:
    return Pack(
        sweep_dir=str(frozen.sweep_dir),
        submission=submission.number,
        runs=tuple((run.run_id, offsets[run.run_id]) for run in runs),
        corpora={run.data_hash or "": str(frozen.corpus(run).absolute()) for run in runs},
        device=device,
        threads=launcher.threads,
        tracking=tracking,
        retries=launcher.retries,
        stop_after=launcher.stop_after,
        minutes=submission.minutes,
        kill_wait=cluster.kill_wait,
        command=submission.command,
    )


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
        said = [line.strip() for line in str(error).splitlines() if "sbatch:" in line] or str(error).split("\n")[:1]
        raise InputError(f"launcher=slurm: sbatch refused the jobs: {' '.join(said)}") from error


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
