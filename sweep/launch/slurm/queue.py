"""What SLURM knows of the jobs of a sweep: one `squeue`, and one `sacct` where the cluster keeps accounts.

squeue alone says whether a job may still run; accounts only say how one ended that squeue has forgotten. (They may lag,
and an array element that is cancelled before it starts never gets into them.)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sweep.launch.slurm.submission import FOLDER, Submission, read_submissions
from sweep.schema import InputError

ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
                   "PREEMPTED", "REVOKED", "TIMEOUT"})  # fmt: skip
IDS_PER_CALL = 1000  # array ids on one command line
ANSWER_SECONDS = 60
_SQUEUE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r")
_SACCT = ("sacct", "--allocations", "--duplicates", "--parsable2", "--noheader",
          "--format=JobID,State,Submit,NodeList,ExitCode")  # fmt: skip


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job or an array element."""

    state: str  # its word, e.g. PENDING, without what follows ("CANCELLED by 0")
    node: str = ""
    reason: str = ""  # why it waits or how it ended, where SLURM says

    @property
    def live(self) -> bool:
        """Whether it may still run: pending, running, requeued, suspended, completing and the like."""
        return self.state not in ENDED


@dataclass(frozen=True)
class Queue:
    """The states of some jobs. Of those `unseen` SLURM could not tell, for the reason `problem`; any other job without
    a state, or with one that is not live, has ended."""

    states: dict[str, JobState] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()
    problem: str | None = None

    def is_live(self, job_id: str) -> bool | None:
        """Whether a job may still run; None where SLURM could not tell."""
        state = self.states.get(job_id)
        return None if job_id in self.unseen else state is not None and state.live

    def live(self) -> set[str]:
        """Ids of jobs that may still run. Raises InputError where SLURM could not tell of all."""
        if self.problem is not None:
            raise InputError(self.problem)
        return {job_id for job_id, state in self.states.items() if state.live}


def live_elements(sweep_dir: Path) -> set[str]:
    """Ids of the jobs ever submitted for the sweep that SLURM still has, as the submissions write them (123 or 123_4).
    Raises InputError where SLURM does not answer, or where some were submitted on another cluster."""
    return ask(read_submissions(sweep_dir)).live()


def ask(submissions: list[Submission], run_ids: set[str] | None = None) -> Queue:
    """The states of the jobs of `submissions`, or of those for `run_ids`. Asks SLURM nothing where there are none."""
    here, elsewhere = set(), set()
    arrays: set[str] = set()
    if not run_ids and run_ids is not None:
        return Queue()
    try:
        name = _cluster_name() if any(one.cluster for one in submissions) else None
    except _Silent as silent:  # nor would the others answer, each after as long a wait
        unseen = (
            e for one in submissions for e in one.elements if run_ids is None or not run_ids.isdisjoint(e.run_ids)
        )
        return Queue(unseen=frozenset(element.job_id for element in unseen), problem=_ask_elsewhere(silent))
    problem = None
    for one in submissions:
        elements = [e for e in one.elements if run_ids is None or not run_ids.isdisjoint(e.run_ids)]
        ids = {element.job_id for element in elements}
        if ids and one.cluster and name and one.cluster != name:
            elsewhere |= ids
            problem = (
                f"the jobs of submission {one.number} are on cluster {one.cluster}, and this is {name}; ask there, or, "
                f"once they have ended, move {FOLDER}/{one.number:04d}.json out of the sweep to forget them"
            )
        else:
            here |= ids
            arrays |= {element.array_id for element in elements}
    queue = _ask(here, arrays) if here else Queue()
    return Queue(queue.states, queue.unseen | elsewhere, queue.problem or problem)


def _ask(jobs: set[str], arrays: set[str]) -> Queue:
    ended: dict[str, JobState] = {}
    try:
        ended = {job_id: state for job_id, state in _accounts(arrays).items() if not state.live}
        queued = _queued(arrays)
    except _Silent as silent:
        # what accounts call ended may have been queued again
        states = {job_id: state for job_id, state in ended.items() if job_id in jobs}
        return Queue(states, frozenset(jobs), _ask_elsewhere(silent))
    live = {job_id: state for job_id, state in queued.items() if state.live}
    return Queue({job_id: state for job_id, state in (queued | ended | live).items() if job_id in jobs})


def _cluster_name() -> str | None:
    """The name of this host's cluster, where it has one. Raises _Silent where the cluster does not answer."""
    name = re.search(r"^ClusterName\s*=\s*(\S+)", _output(["scontrol", "show", "config"]), re.MULTILINE)
    return name[1] if name else None


def _ask_elsewhere(silent: _Silent) -> str:
    return f"{silent}; ask where the commands of the cluster work"


def parse_squeue(text: str) -> dict[str, JobState]:
    """States by job id from lines `id|state|node|reason`."""
    found = {}
    for line in text.splitlines():
        job_id, state, node, reason = line.strip().split("|", 3)
        for element in expand(job_id):
            found[element] = JobState(state, node, "" if reason == "None" else reason)
    return found


def parse_sacct(text: str) -> dict[str, JobState]:
    """States by job id from lines `id|state|submitted|nodes|exit code:signal`, of a job that was requeued the last."""
    lines = [line.split("|") for line in text.splitlines()]
    found = {}
    for job_id, state, _, node, code in sorted(lines, key=lambda line: line[2]):
        word, _, by = state.partition(" ")
        reason = by or (f"exit code {code}" if word == "FAILED" else "")
        for element in expand(job_id):
            found[element] = JobState(word, "" if node == "None assigned" else node, reason)
    return found


def expand(job_id: str) -> Iterator[str]:
    """Ids of the elements that e.g. 123_[4-9,12-20:2%64] stands for; an ordinary id stands for itself."""
    array, bracket, ranges = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for part in ranges.rstrip("]").partition("%")[0].split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        for index in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{array}_{index}"


class _Silent(Exception):
    """A command of SLURM is absent or does not answer; the message says so."""


def _queued(arrays: Iterable[str]) -> dict[str, JobState]:
    found: dict[str, JobState] = {}
    for ids in _chunks(arrays):
        try:
            found |= parse_squeue(_output([*_SQUEUE, f"--jobs={ids}"]))
        except _Silent as silent:
            if "Invalid job id" not in str(silent):  # its way of saying that it has forgotten a single job
                raise
    return found


def _accounts(arrays: Iterable[str]) -> dict[str, JobState]:
    found: dict[str, JobState] = {}
    try:
        for ids in _chunks(arrays):
            found |= parse_sacct(_output([*_SACCT, f"--jobs={ids}"]))
    except _Silent:  # a cluster without accounts
        return {}
    return found


def _chunks(arrays: Iterable[str]) -> Iterator[str]:
    ids = sorted(arrays, key=int)
    for start in range(0, len(ids), IDS_PER_CALL):
        yield ",".join(ids[start : start + IDS_PER_CALL])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=ANSWER_SECONDS)
    except FileNotFoundError as error:
        raise _Silent(f"{command[0]} is not found on this machine") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Silent(f"{command[0]} does not answer ({type(error).__name__})") from error
    if done.returncode:
        raise _Silent(f"{command[0]} does not answer ({' '.join(done.stderr.split()) or done.returncode})")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, less a user's habits for what these commands print; long array ranges in full."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    return {**kept, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
