"""Where a run's output lies: the logs of every job that was submitted for it, and the traceback of its last error."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweep.launch.slurm.queue import JobState, ask
from sweep.launch.slurm.submission import Element, job_folder, read_submissions
from sweep.record import TRACEBACK_FILE, read_status
from sweep.run_dir import run_dir


@dataclass(frozen=True)
class JobLog:
    """A job of a run and its output, one file a process; none where it has not started."""

    element: Element
    submission: int
    state: JobState | None
    files: tuple[Path, ...]


def job_logs(sweep_dir: Path, run_id: str) -> list[JobLog]:
    """Every job that was submitted for the run, the oldest first."""
    submissions = read_submissions(sweep_dir)
    states = ask(submissions, {run_id}).states
    jobs = [(one.number, element) for one in submissions for element in one.elements if run_id in element.run_ids]
    return [
        JobLog(element, number, states.get(element.job_id),
               tuple(sorted(job_folder(sweep_dir, number).glob(f"{element.job_id}_*log.*"))))
        for number, element in jobs
    ]  # fmt: skip


def describe(sweep_dir: Path, run_id: str, lines: int) -> Iterator[str]:
    """What `isoloss logs` prints: the run's state, its jobs, the last `lines` of its last job's log, its traceback."""
    folder = run_dir(sweep_dir, run_id)
    status = read_status(folder) or {"status": "planned"}
    attempts = status.get("attempts", 0)
    yield f"run {run_id}: {status['status']}, {attempts} attempt{'s' * (attempts != 1)}, record {folder}"
    yield from (f"note: {note}" for note in status.get("notes", ()))
    jobs = job_logs(sweep_dir, run_id)
    if not jobs:
        yield "no job was submitted for it; a local sweep prints to its terminal"
    for job in jobs:
        known = " ".join(filter(None, (job.state.state, job.state.node, job.state.reason))) if job.state else "gone"
        others = len(job.element.run_ids) - 1
        shared = f", shared with {others} other run{'s' * (others > 1)}" if others else ""
        yield f"job {job.element.job_id} (submission {job.submission}{shared}): {known}"
        yield from (f"  {path}" for path in job.files or ("no log yet",))
    last = next((job.files[0] for job in reversed(jobs) if job.files), None)
    if last is not None and lines:
        yield f"\n--- the last {lines} lines of {last}"
        yield from tail(last, lines)
    traceback = folder / TRACEBACK_FILE
    if traceback.exists():
        yield f"\n--- {traceback}"
        yield traceback.read_text(errors="replace").rstrip("\n")


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` of a text file that may be large and be written to now; of its last MiB at most."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 2**20))
        return list(deque(file.read().decode(errors="replace").splitlines(), lines))
