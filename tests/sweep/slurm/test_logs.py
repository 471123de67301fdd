"""What `isoloss logs` finds of a run, from the files of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.launch.slurm.logs import describe, tail
from sweep.launch.slurm.submission import Element, Submission, job_folder, reserve, write_submission
from sweep.record import write_status
from sweep.schema import RUNS_DIR

RUNS = ["00000000000000a1", "00000000000000a2", "b000000000000000"]


@pytest.fixture
def sweep_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep whose first run was trained by two jobs that SLURM has forgotten."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (folder / "squeue").write_text("#!/bin/sh\n")
    (folder / "squeue").chmod(0o755)
    for element in (Element("7_3", (RUNS[0], RUNS[1]), 1.0), Element("12", (RUNS[0],), 1.0)):
        number = reserve(tmp_path)
        write_submission(tmp_path, Submission(number, "", (), (element,), 2, {}, {}))
        for rank in range(2):
            log = job_folder(tmp_path, number) / f"{element.job_id}_{rank}_log.out"
            log.write_text("".join(f"job {element.job_id} rank {rank} line {line}\n" for line in range(30)))
    (job_folder(tmp_path, 1) / "7_30_0_log.out").write_text("of another job\n")
    folder = tmp_path / RUNS_DIR / RUNS[0]
    folder.mkdir(parents=True)
    write_status(folder, "failed", attempts=2, error="ValueError: no", notes=["micro-batch 4 instead of 8"])
    (folder / "error.txt").write_text("Traceback (most recent call last):\n  ...\nValueError: no\n")
    return tmp_path


def test_all_jobs_of_a_run_are_listed_and_the_last_ones_log_is_shown(sweep_dir: Path) -> None:
    said = list(describe(sweep_dir, RUNS[0], 3))
    folders = [job_folder(sweep_dir, number) for number in (1, 2)]
    assert said[0] == f"run {RUNS[0]}: failed, 2 attempts, record {sweep_dir / RUNS_DIR / RUNS[0]}"
    assert said[1] == "note: micro-batch 4 instead of 8"
    assert said[2:8] == [
        "job 7_3 (submission 1, shared with 1 other run): gone",
        f"  {folders[0]}/7_3_0_log.out",
        f"  {folders[0]}/7_3_1_log.out",
        "job 12 (submission 2): gone",
        f"  {folders[1]}/12_0_log.out",
        f"  {folders[1]}/12_1_log.out",
    ]
    assert said[9:12] == [f"job 12 rank 0 line {line}" for line in (27, 28, 29)]
    assert said[-1].endswith("ValueError: no")


def test_a_run_without_a_job_says_where_its_error_lies(sweep_dir: Path) -> None:
    folder = sweep_dir / RUNS_DIR / RUNS[2]
    folder.mkdir()
    write_status(folder, "failed", attempts=1, error="ValueError: no")
    (folder / "error.txt").write_text("ValueError: no\n")
    said = list(describe(sweep_dir, RUNS[2], 20))
    assert "no job was submitted for it; a local sweep prints to its terminal" in said
    assert said[-2:] == [f"\n--- {folder}/error.txt", "ValueError: no"]


def test_only_the_end_of_a_large_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\n" + b"x" * 3 * 2**20 + b"\nlast but one\nlast")
    assert tail(log, 2) == ["last but one", "last"]
    assert sum(map(len, tail(log, 100))) <= 2**20
    assert tail(log, 0) == []
