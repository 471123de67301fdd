"""Which jobs scancel ends and which runs get the file, from what squeue was seen to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.launch.slurm.cancel import cancel
from sweep.launch.slurm.submission import Element, Submission, write_submission
from sweep.record import write_status
from sweep.schema import RUNS_DIR, InputError

RUNS = [f"{number:016x}" for number in range(8)]
# Element 2 of array 7 has ended; job 8 trains two runs, one of them done.
ELEMENTS = (
    Element("7_0", (RUNS[0],), 1.0),
    Element("7_1", (RUNS[1], RUNS[2]), 1.0),
    Element("7_2", (RUNS[3],), 1.0),
    Element("8", (RUNS[4], RUNS[5]), 1.0),
)
SQUEUE = "7_0|RUNNING|node1|None\n7_1|PENDING||Priority\n7_2|COMPLETED|node1|None\n8|RUNNING|node2|None\n"


@pytest.fixture
def sweep_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep with jobs, and a PATH on which scancel writes down its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name, script in (("squeue", f"/bin/cat <<'END'\n{SQUEUE}END"), ("scancel", f'echo "$@" >> {tmp_path}/calls')):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "slurm").mkdir()
    write_submission(tmp_path, Submission(1, "2026-11-22T10:32:28", (), ELEMENTS, 2, {}, {}))
    (tmp_path / RUNS_DIR / RUNS[5]).mkdir(parents=True)
    write_status(tmp_path / RUNS_DIR / RUNS[5], "done")
    return tmp_path


def calls(sweep_dir: Path) -> list[str]:
    """Arguments of scancel so far."""
    path = sweep_dir / "calls"
    return path.read_text().split() if path.exists() else []


def cancelled(sweep_dir: Path) -> list[str]:
    """Runs that have the file."""
    return sorted(path.parent.name for path in sweep_dir.glob(f"{RUNS_DIR}/*/cancel"))


def test_all_that_lives_is_cancelled_by_as_few_ids_as_can_be(sweep_dir: Path) -> None:
    done = cancel(sweep_dir)
    assert calls(sweep_dir) == ["--", "7", "8"]
    assert (done.jobs, done.runs) == (["7_0", "7_1", "8"], [*RUNS[:3], RUNS[4]])
    assert cancelled(sweep_dir) == done.runs  # neither the finished run nor that of the ended job


def test_a_job_with_nothing_else_to_do_is_ended(sweep_dir: Path) -> None:
    done = cancel(sweep_dir, [RUNS[0], RUNS[4]])
    assert calls(sweep_dir) == ["--", "7_0", "8"]
    assert (done.shared, done.without_job) == ([], [])
    assert cancelled(sweep_dir) == [RUNS[0], RUNS[4]]


def test_a_job_with_other_runs_goes_on_until_all_of_them_are_cancelled(sweep_dir: Path) -> None:
    done = cancel(sweep_dir, [RUNS[2]])
    assert (calls(sweep_dir), done.jobs, done.shared) == ([], [], [RUNS[2]])
    assert cancel(sweep_dir, [RUNS[2]]).without_job == [RUNS[2]]
    assert cancel(sweep_dir, [RUNS[1]]).jobs == ["7_1"]
    assert calls(sweep_dir) == ["--", "7_1"]
    assert cancelled(sweep_dir) == RUNS[1:3]


def test_runs_without_a_live_job_are_left_alone(sweep_dir: Path) -> None:
    done = cancel(sweep_dir, [RUNS[3], RUNS[5], RUNS[6]])
    assert done.without_job == [RUNS[3], RUNS[5], RUNS[6]]
    assert (calls(sweep_dir), cancelled(sweep_dir)) == ([], [])


@pytest.mark.parametrize("wanted", [None, [RUNS[0]]])
def test_a_run_that_is_a_link_out_of_the_sweep_is_not_written_to(sweep_dir: Path, wanted: list[str] | None) -> None:
    outside = sweep_dir / "outside"
    outside.mkdir()
    (sweep_dir / RUNS_DIR / RUNS[0]).symlink_to(outside)
    with pytest.raises(InputError, match="is a link out of"):
        cancel(sweep_dir, wanted)
    assert not any(outside.iterdir())
    assert calls(sweep_dir) == []


def test_what_scancel_refuses_is_said(sweep_dir: Path) -> None:
    said = "scancel: error: Kill job error on job id 7: Access/permission denied"
    (sweep_dir / "bin" / "scancel").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    with pytest.raises(InputError, match="permission denied"):
        cancel(sweep_dir)
    said = "scancel: error: Kill job error on job id 7: Job/step already completing or completed"
    (sweep_dir / "bin" / "scancel").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    cancel(sweep_dir)
