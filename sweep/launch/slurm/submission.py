"""What has been submitted for a sweep: which job trains which runs. Plain JSON, one file a submission.

SWEEP_DIR/slurm/NNNN.json   job ids, the runs of each array element, resources, the code they run
SWEEP_DIR/slurm/NNNN/       submitit's files: job scripts, logs, pickled arguments of isoloss's own
SWEEP_DIR/code/HASH/        snapshots of the code

The number NNNN orders submissions: an attempt of a later one supersedes an attempt of an earlier one (see sweep.lease).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweep.atomic import write_json
from sweep.run_dir import checked
from sweep.schema import InputError
from sweep.spec import build

FOLDER = "slurm"  # in the sweep directory
STOPPED_FILE = "stopped.json"  # in FOLDER: {"reason", "when"}; jobs that see it end without training
CANCEL_FILE = "cancel"  # in a run directory: this run is not to be trained until somebody asks for it again

_JOB_ID = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True)
class Element:
    """One job, or one element of a job array: it trains `run_ids` one after another."""

    job_id: str  # as SLURM writes it: 123, or 123_4 for element 4 of array 123
    run_ids: tuple[str, ...]
    seconds: float  # estimated for all of them

    def __post_init__(self) -> None:
        if not _JOB_ID.fullmatch(self.job_id):
            raise InputError(f"{self.job_id!r} is no SLURM job id")
        for run_id in self.run_ids:
            checked(run_id)

    @property
    def array_id(self) -> str:
        """The job id without the index of an array element."""
        return self.job_id.partition("_")[0]


@dataclass(frozen=True)
class Submission:
    """One call that submitted jobs."""

    number: int
    submitted: str  # UTC
    command: tuple[str, ...]
    elements: tuple[Element, ...]
    minutes: int  # time limit of a job
    resources: dict[str, Any]
    code: dict[str, Any]  # path of the snapshot, its hash, the checkout's sha and dirty flag
    settings: dict[str, Any] = field(default_factory=dict)  # groups launcher and tracking, to submit what is left again
    cluster: str = ""  # its name, since a file system may serve several


def reserve(sweep_dir: Path) -> int:
    """The number of a new submission, taken by making its folder, which no two processes can."""
    folder = sweep_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        number = 1 + max((int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit()),
                         default=0)  # fmt: skip
        try:
            job_folder(sweep_dir, number).mkdir()
            return number
        except FileExistsError:
            continue


def job_folder(sweep_dir: Path, number: int) -> Path:
    """Where submitit keeps its files of a submission."""
    return sweep_dir / FOLDER / f"{number:04d}"


def write_submission(sweep_dir: Path, submission: Submission) -> None:
    """Write, or replace, the file of a submission, atomically."""
    write_json(sweep_dir / FOLDER / f"{submission.number:04d}.json", asdict(submission))


def read_submissions(sweep_dir: Path) -> list[Submission]:
    """All submissions of a sweep, the oldest first; none where there was none. Raises InputError for a damaged file."""
    found = []
    for path in sorted((sweep_dir / FOLDER).glob("[0-9]*.json")):
        try:
            found.append(build(Submission, json.loads(path.read_text()), path.name))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); restore it, or remove it to forget its jobs") from error
    return found


def elements_of_runs(submissions: list[Submission]) -> dict[str, list[Element]]:
    """Every run that was ever submitted with the elements submitted for it, the oldest first."""
    found: dict[str, list[Element]] = {}
    for one in submissions:
        for element in one.elements:
            for run_id in element.run_ids:
                found.setdefault(run_id, []).append(element)
    return found
