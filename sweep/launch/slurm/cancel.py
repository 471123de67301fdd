"""Ending what was submitted: whole jobs by scancel, one run of a job that trains several by a file in its directory.

Every cancelled run gets the file, since SLURM forgets: an array element cancelled before it started leaves no account.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sweep.launch.freeze import recorded_status
from sweep.launch.slurm.queue import IDS_PER_CALL, ask
from sweep.launch.slurm.submission import CANCEL_FILE, Element, read_submissions
from sweep.record import FINISHED
from sweep.run_dir import run_dir
from sweep.schema import InputError


@dataclass
class Cancelled:
    """What `cancel` did."""

    jobs: list[str] = field(default_factory=list)  # job ids ended by scancel
    runs: list[str] = field(default_factory=list)  # run_ids that will not be trained further
    shared: list[str] = field(default_factory=list)  # those of them whose job goes on with other runs
    without_job: list[str] = field(default_factory=list)  # asked for, but finished, cancelled before, or in no live job


def cancel(sweep_dir: Path, wanted: list[str] | None = None) -> Cancelled:
    """Cancel the unfinished runs `wanted` (None: all) that live jobs have yet to train. A job with other runs to do
    goes on with them. Raises InputError where SLURM does not answer or refuses."""
    submissions = read_submissions(sweep_dir)
    live_ids = ask(submissions).live()
    live = [element for one in submissions for element in one.elements if element.job_id in live_ids]
    result = Cancelled()
    for element in live:
        left = [run_id for run_id in element.run_ids if _left(sweep_dir, run_id)]
        chosen = left if wanted is None else [run_id for run_id in left if run_id in set(wanted)]
        if wanted is None or (chosen and len(chosen) == len(left)):
            result.jobs.append(element.job_id)
        else:
            result.shared += chosen
        result.runs += chosen
    result.without_job = [run_id for run_id in wanted or () if run_id not in result.runs]
    for run_id in result.runs:  # before the signal, so that who gets it sees why
        folder = run_dir(sweep_dir, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CANCEL_FILE).touch()
    ended = set(result.jobs)
    for ids in _as_few_as_can_be(live, ended):
        _scancel(ids)
    return result


def _left(sweep_dir: Path, run_id: str) -> bool:
    folder = run_dir(sweep_dir, run_id)
    return recorded_status(folder) not in FINISHED and not (folder / CANCEL_FILE).exists()


def _as_few_as_can_be(live: list[Element], ended: set[str]) -> Iterator[list[str]]:
    """Arguments of scancel for the jobs `ended`: an array by its own id where all that lives of it is to end."""
    spared = {element.array_id for element in live if element.job_id not in ended}
    ids = dict.fromkeys(e.job_id if e.array_id in spared else e.array_id for e in live if e.job_id in ended)
    names = list(ids)
    for start in range(0, len(names), IDS_PER_CALL):
        yield names[start : start + IDS_PER_CALL]


def _scancel(ids: list[str]) -> None:
    try:
        done = subprocess.run(["scancel", "--", *ids], capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"scancel does not work here ({error}); use a login node of the cluster") from error
    refused = [line for line in done.stderr.splitlines() if "Invalid job id" not in line and "completing" not in line]
    if refused:  # other than for a job that has just ended
        raise InputError(f"scancel did not end all jobs ({refused[0]}); try again, or ask who runs the cluster")
