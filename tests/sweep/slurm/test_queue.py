"""What SLURM prints, as recorded on a cluster of version 22.05, and what is made of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sweep.launch.slurm import queue
from sweep.launch.slurm.queue import JobState, Queue, ask, expand, live_elements, parse_sacct, parse_squeue
from sweep.launch.slurm.submission import Element, Submission, read_submissions, write_submission
from sweep.schema import InputError

# An array of 6 with two at a time, whose last element was cancelled before it started; a job that was requeued, one
# that was cancelled, one whose node was set down and one that failed. Seconds after these things happened:
SQUEUE = """\
14255903|CANCELLED|node2|None
14255905|FAILED|node4|NonZeroExitCode
14255901_2|PENDING||JobArrayTaskLimit
14255901_3|PENDING||JobArrayTaskLimit
14255901_4|PENDING||JobArrayTaskLimit
14255902|PENDING||BeginTime
14255904|PENDING||BeginTime
14255901_0|RUNNING|node1|None
14255901_1|RUNNING|node1|None
"""
SACCT = """\
14255902|REQUEUED|2026-11-22T10:32:28|node2|0:0
14255903|CANCELLED by 0|2026-11-22T10:32:28|node2|0:0
14255904|NODE_FAIL|2026-11-22T10:32:28|node4|0:0
14255905|FAILED|2026-11-22T10:32:28|node4|3:0
14255901_0|RUNNING|2026-11-22T10:32:28|node1|0:0
14255901_1|RUNNING|2026-11-22T10:32:28|node1|0:0
14255901_[2-5%2]|PENDING|2026-11-22T10:32:28|None assigned|0:0
"""
# Half a minute later.
SACCT_LATER = """\
14255902|REQUEUED|2026-11-22T10:32:28|node2|0:0
14255904|NODE_FAIL|2026-11-22T10:32:28|node4|0:0
14255902|RUNNING|2026-11-22T10:32:32|node2|0:0
14255904|RUNNING|2026-11-22T10:32:32|node4|0:0
"""
ELEMENTS = [f"14255901_{index}" for index in range(6)]
JOBS = [*ELEMENTS, "14255902", "14255903", "14255904", "14255905"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def command(folder: Path, name: str, prints: str, code: int = 0) -> None:
    """A command that answers what SLURM's was seen to answer."""
    stream = 2 if code else 1
    (folder / name).write_text(f"#!/bin/sh\n/bin/cat >&{stream} <<'END'\n{prints}END\nexit {code}\n")
    (folder / name).chmod(0o755)


def elements(*job_ids: str) -> list[Element]:
    """One element of one run for each job."""
    return [Element(job_id, (f"{number:016x}",), 60.0) for number, job_id in enumerate(job_ids)]


def submission(*job_ids: str, cluster: str = "") -> Submission:
    """A submission of one run a job."""
    return Submission(1, "2026-11-22T10:32:28", (), tuple(elements(*job_ids)), 2, {}, {}, cluster=cluster)


def submitted(sweep_dir: Path, *job_ids: str) -> None:
    """The submission, as a sweep keeps it."""
    (sweep_dir / "slurm").mkdir(parents=True)
    write_submission(sweep_dir, submission(*job_ids))


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("123", ["123"]),
        ("123_4", ["123_4"]),
        ("123_[4]", ["123_4"]),
        ("123_[4-6%64]", ["123_4", "123_5", "123_6"]),
        ("123_[1,3-4,10]", ["123_1", "123_3", "123_4", "123_10"]),
        ("14255908_[100-104:2%1]", ["14255908_100", "14255908_102", "14255908_104"]),
        ("123_[0-4:2,9%3]", ["123_0", "123_2", "123_4", "123_9"]),
    ],
)
def test_ranges_of_array_elements(written: str, means: list[str]) -> None:
    assert list(expand(written)) == means


def test_squeue_says_what_may_still_run() -> None:
    states = parse_squeue(SQUEUE)
    assert {job_id for job_id, state in states.items() if state.live} == {*ELEMENTS[:5], "14255902", "14255904"}
    assert states["14255901_0"] == JobState("RUNNING", "node1")
    assert states["14255904"] == JobState("PENDING", "", "BeginTime")


@pytest.mark.parametrize(
    "state", ["CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"]
)
def test_a_job_between_two_states_is_live(state: str) -> None:
    assert JobState(state).live


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "NODE_FAIL", "TIMEOUT", "PREEMPTED", "BOOT_FAIL", "DEADLINE"])
def test_an_ended_job_is_not_live(state: str) -> None:
    assert not JobState(state).live


def test_of_a_requeued_job_the_last_account_counts() -> None:
    early, later = parse_sacct(SACCT), parse_sacct(SACCT_LATER)
    assert early["14255904"].state == "NODE_FAIL"
    assert later["14255904"] == JobState("RUNNING", "node4")
    assert parse_sacct("".join(reversed(SACCT_LATER.splitlines(keepends=True)))) == later
    assert early["14255903"] == JobState("CANCELLED", "node2", "by 0")
    assert early["14255905"] == JobState("FAILED", "node4", "exit code 3:0")
    assert early["14255901_4"] == JobState("PENDING")


def test_squeue_overrules_accounts_that_lag(slurm: Path) -> None:
    command(slurm, "squeue", SQUEUE)
    command(slurm, "sacct", SACCT)
    answer = ask([submission(*JOBS)])
    assert answer.live() == {*ELEMENTS[:5], "14255902", "14255904"}
    assert answer.states["14255904"].state == "PENDING"  # though its account says NODE_FAIL
    assert "14255901_5" not in answer.states  # though its account says PENDING
    assert answer.states["14255903"].reason == "by 0"


def test_a_cluster_without_accounts(slurm: Path) -> None:
    command(slurm, "squeue", SQUEUE)
    assert ask([submission(*JOBS)]).states["14255905"] == JobState("FAILED", "node4", "NonZeroExitCode")
    command(slurm, "sacct", "Slurm accounting storage is disabled\n", code=1)
    assert ask([submission(*JOBS)]).live() == {*ELEMENTS[:5], "14255902", "14255904"}


def test_a_job_that_squeue_has_forgotten_is_not_live(slurm: Path) -> None:
    command(slurm, "squeue", "slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert ask([submission("99")]) == Queue()
    command(slurm, "sacct", "99|TIMEOUT|2026-11-22T10:32:28|node2|0:0\n")
    assert ask([submission("99")]).states == {"99": JobState("TIMEOUT", "node2")}


@pytest.mark.parametrize("there", [False, True])
def test_where_slurm_does_not_answer_nothing_counts_as_ended(slurm: Path, tmp_path: Path, there: bool) -> None:
    if there:
        command(slurm, "squeue", "slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    submitted(tmp_path, "99")
    says = "Unable to contact slurm controller" if there else "squeue is not found on this machine"
    assert says in (ask([submission("99")]).problem or "")
    with pytest.raises(InputError, match=says):
        live_elements(tmp_path)


def test_accounts_alone_do_not_say_that_a_job_has_ended(slurm: Path) -> None:
    command(slurm, "sacct", SACCT)
    answer = ask([submission("14255904", "14255902")])  # the first is called NODE_FAIL, and was queued again
    assert answer.states["14255904"].state == "NODE_FAIL"
    assert answer.is_live("14255904") is answer.is_live("14255902") is None


def test_jobs_of_another_cluster_are_unknown_here(slurm: Path) -> None:
    command(slurm, "squeue", SQUEUE)
    command(slurm, "scontrol", "AccountingStorageHost   = head\nClusterName             = small\nMCSPlugin = none\n")
    there, here = submission("14255903", cluster="large"), submission("14255905", "14255902", cluster="small")
    answer = ask([there, here])
    assert [answer.is_live(job_id) for job_id in ("14255903", "14255905", "14255902")] == [None, False, True]
    with pytest.raises(InputError, match=r"submission 1 are on cluster large, and this is small; .* slurm/0001\.json"):
        answer.live()
    assert ask([here]).live() == {"14255902"}
    assert ask([there, here], {f"{1:016x}"}).live() == {"14255902"}  # that run was submitted here only


def test_live_elements_are_those_of_all_submissions(slurm: Path, tmp_path: Path) -> None:
    assert live_elements(tmp_path) == set()  # asks nobody
    submitted(tmp_path, "14255901_2", "14255905")
    command(slurm, "squeue", SQUEUE)
    assert live_elements(tmp_path) == {"14255901_2"}


def test_very_many_jobs_fit_their_command_lines(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = slurm / "calls"
    (slurm / "squeue").write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (slurm / "squeue").chmod(0o755)
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    assert ask([submission(*(f"{array}_{index}" for array in (7, 8) for index in range(20_000)))]).live() == set()
    assert log.read_text().count("\n") == 1
    assert log.read_text().endswith("--jobs=7,8\n")
    ask([submission(*map(str, range(100_000, 150_000)))])
    assert max(len(line) for line in log.read_text().splitlines()) < 20_000


@pytest.mark.parametrize("job_id", ["--help", "1;rm", "1 2", "123_", ""])
def test_what_is_no_job_id_never_reaches_a_command_line(job_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SLURM job id"):
        elements(job_id)
    submitted(tmp_path, "99")
    file = tmp_path / "slurm" / "0001.json"
    file.write_text(file.read_text().replace('"99"', json.dumps(job_id)))
    with pytest.raises(InputError, match=r"0001\.json is damaged .*no SLURM job id"):
        live_elements(tmp_path)


@pytest.mark.parametrize("run_id", ["../../elsewhere", "/etc", "0123456789ABCDEF", "..", ""])
def test_what_is_no_run_id_never_becomes_a_folder(run_id: str, tmp_path: Path) -> None:
    submitted(tmp_path, "99")
    file = tmp_path / "slurm" / "0001.json"
    file.write_text(file.read_text().replace(f"{0:016x}", run_id))
    with pytest.raises(InputError, match="is no run_id"):
        read_submissions(tmp_path)


def test_the_habits_of_a_user_do_not_reach_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCT_FORMAT", "JobID")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    environment = queue._environment()
    assert not {"SACCT_FORMAT", "SQUEUE_STATES"} & set(environment)
    assert environment["PATH"] == os.environ["PATH"]


def test_a_cluster_that_does_not_answer_is_asked_once(slurm: Path) -> None:
    """Each command waits a minute for a configuration that is not there."""
    for name in ("scontrol", "squeue", "sacct"):
        (slurm / name).write_text(f"#!/bin/sh\necho {name} >> {slurm}/calls\necho no configuration >&2\nexit 1\n")
        (slurm / name).chmod(0o755)
    answer = ask([submission("7", cluster="large")])
    assert (slurm / "calls").read_text() == "scontrol\n"
    assert answer.is_live("7") is None
    assert "scontrol does not answer (no configuration); ask where" in (answer.problem or "")
