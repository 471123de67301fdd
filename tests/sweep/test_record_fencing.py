"""The record under leases: what a superseded attempt can still do, failures, notes, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from faults import fill

from sweep.atomic import replacing
from sweep.collect import collect
from sweep.lease import Lease, LeaseLost, take
from sweep.record import NOTES_KEPT, RunRecord, read_execution, read_record, read_status
from sweep.schema import CURVE_COLUMNS, METRICS_FILE, SPEC_FILE, STATUS_FILE, STEPS_FILE
from sweep.spec import Execution, PlannedRun

MANIFEST = {"data_hash": "abc", "unique_tokens": 1e6, "bytes_per_token": 1.0, "device": "a processor"}
SERIES = {"train_loss": [3.0], "lr": [0.1], "grad_norm": [1.0]}


def row(step: int) -> dict[str, float]:
    values = dict.fromkeys(CURVE_COLUMNS, 0.5) | {"step": step}
    del values["run_id"]
    return values


def begin(planned: PlannedRun, run_dir: Path, restart: int, steps: tuple[int, ...] = ()) -> RunRecord:
    """Attempt `restart` of the run, with the evaluations `steps`."""
    record = RunRecord(run_dir, take(run_dir, "run", (1, restart)))
    record.begin(planned, MANIFEST)
    record.rewind([row(step) for step in steps])
    return record


def lease_of(record: RunRecord) -> Lease:
    assert record.lease is not None
    return record.lease


def a_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("late")


def contents(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


WRITES: dict[str, Callable[[RunRecord, PlannedRun], object]] = {
    "begin": lambda record, planned: record.begin(planned, MANIFEST),
    "adopt": lambda record, planned: record.adopt(),
    "set_status": lambda record, planned: record.set_status("done"),
    "note": lambda record, planned: record.note("late"),
    "fail": lambda record, planned: record.fail("late", "late"),
    "append": lambda record, planned: record.append(row(20)),
    "rewind": lambda record, planned: record.rewind([]),
    "put_folder": lambda record, planned: record.put_folder("model", a_file),
    "write_steps": lambda record, planned: record.write_steps(SERIES),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_superseded_attempt_changes_nothing(plan_tiny, tmp_path: Path, name: str) -> None:
    planned = plan_tiny()
    early = begin(planned, tmp_path, 0, (5,))
    late = begin(planned, tmp_path, 1, (5,))
    late.append(row(7))
    before = contents(tmp_path)
    with pytest.raises(LeaseLost):
        WRITES[name](early, planned)
    assert contents(tmp_path) == before
    WRITES[name](late, planned)


def test_lines_of_an_attempt_stopped_after_its_last_look_go_where_nobody_sees_them(plan_tiny, tmp_path: Path) -> None:
    early = begin(plan_tiny(), tmp_path, 0)
    early.append(row(5))
    late = begin(plan_tiny(), tmp_path, 1, (5,))
    lease_of(early).check = lambda: None  # type: ignore[method-assign]  # has looked just before
    early.append(row(6))
    late.append(row(7))
    early.append(row(8))
    assert [r["step"] for r in read_record(tmp_path).rows] == [5, 7]
    assert read_record(tmp_path).problems == []


def test_a_result_counts_only_of_the_attempt_in_force(plan_tiny, tmp_path: Path) -> None:
    planned = plan_tiny()
    run_dir = tmp_path / "runs" / planned.run_id
    early = begin(planned, run_dir, 0, (20,))
    early.set_status("done", step=20)
    assert (read_status(run_dir) or {})["status"] == "done"
    late = take(run_dir, "run", (1, 1))
    assert (read_status(run_dir) or {})["status"] == "running"
    assert read_record(run_dir).status["status"] == "running"
    assert list(pd.read_parquet(collect(tmp_path)[0])["status"]) == ["running"]
    assert RunRecord(run_dir, late).adopt() == "done"  # it had been finished before it was taken over
    status = read_status(run_dir) or {}
    assert (status["status"], status["attempt"], status["claim"], status["step"]) == ("done", late.number, [1, 1], 20)


def test_a_failure_of_an_earlier_attempt_is_still_said(plan_tiny, tmp_path: Path) -> None:
    begin(plan_tiny(), tmp_path, 0).fail("ValueError: no")
    take(tmp_path, "run", (1, 1))
    assert (read_status(tmp_path) or {})["error"] == "ValueError: no"


@pytest.mark.parametrize("damaged", [METRICS_FILE, SPEC_FILE, STATUS_FILE])
def test_a_damaged_result_is_not_adopted(plan_tiny, tmp_path: Path, damaged: str) -> None:
    begin(plan_tiny(), tmp_path, 0, (20,)).set_status("done")
    (tmp_path / damaged).write_text('{"step": 20')
    assert RunRecord(tmp_path, take(tmp_path, "run", (1, 1))).adopt() is None


@pytest.mark.parametrize("write", ["adopt", "begin"])
def test_parts_of_earlier_attempts_are_removed(plan_tiny, tmp_path: Path, write: str) -> None:
    begin(plan_tiny(), tmp_path, 0, (5,))
    for name in (f"{STATUS_FILE}.0-0123abcd", f"{STEPS_FILE}.1-0123abcd", f"{STATUS_FILE}.9999", "alien"):
        (tmp_path / f"{name}.part").write_text("cut off")
    a_file(tmp_path / "model.1-0123abcd.part")
    WRITES[write](RunRecord(tmp_path, take(tmp_path, "run", (1, 1))), plan_tiny())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("write", ["adopt", "begin"])
def test_an_attempt_stopped_after_its_last_look_removes_no_parts_of_a_later_one(
    plan_tiny, tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = RunRecord(tmp_path, take(tmp_path, "run", (1, 0)))
    late = begin(plan_tiny(), tmp_path, 1)
    looks = iter([lambda: None])  # it has looked just before
    look = lease_of(early).check
    monkeypatch.setattr(early.lease, "check", lambda: next(looks, look)())
    with replacing(tmp_path / "file", lease_of(late)) as stream:
        stream.write(b"of the attempt in force")
        with contextlib.suppress(LeaseLost):
            WRITES[write](early, plan_tiny())
    assert (tmp_path / "file").read_bytes() == b"of the attempt in force"


def test_failures_are_counted_once_an_attempt(plan_tiny, tmp_path: Path) -> None:
    for restart in range(3):
        record = begin(plan_tiny(), tmp_path, restart)
        record.fail(f"ValueError: {restart}", "trace of rank 0")
        another = RunRecord(tmp_path, lease_of(record))  # another process of this attempt
        another.fail("rank 0: ValueError")
        another.fail("a second trace", "trace of rank 1")
        status = read_status(tmp_path) or {}
        assert (status["failures"], status["error"]) == (restart + 1, f"ValueError: {restart}")
        assert (tmp_path / "error.txt").read_text() == "trace of rank 0"
    begin(plan_tiny(), tmp_path, 3)
    status = read_status(tmp_path) or {}
    assert (status["error"], status["attempts"], status["failures"]) == (None, 4, 3)
    assert "retry" not in status


def test_the_rank_with_the_traceback_is_heard(plan_tiny, tmp_path: Path) -> None:
    record = begin(plan_tiny(), tmp_path, 0)
    record.fail("rank 1: ValueError: no")
    record.fail("ValueError: no", "where it happened", retry=False)
    status = read_status(tmp_path) or {}
    assert (status["failures"], status["error"], status["retry"]) == (1, "ValueError: no", False)
    assert (tmp_path / "error.txt").read_text() == "where it happened"


def test_notes_are_kept_once_each_and_not_without_end(plan_tiny, tmp_path: Path) -> None:
    record = begin(plan_tiny(), tmp_path, 0)
    for text in ("one", "two", "one"):
        record.note(text)
    record.set_status("running", step=3)
    begin(plan_tiny(), tmp_path, 1)
    assert (read_status(tmp_path) or {})["notes"] == ["one", "two"]
    for i in range(2 * NOTES_KEPT):
        RunRecord(tmp_path).note(f"note {i}")
    assert (read_status(tmp_path) or {})["notes"] == [f"note {i}" for i in range(NOTES_KEPT, 2 * NOTES_KEPT)]


def test_how_a_run_is_computed_is_read_back(plan_tiny, tmp_path: Path) -> None:
    assert read_execution(tmp_path) is None
    begin(plan_tiny(execution={"threads": 3, "micro_batch": 2}), tmp_path, 0)
    assert read_execution(tmp_path) == Execution(threads=3, micro_batch=2, checkpoint_seconds=1e9)


def test_a_full_disk_costs_no_line_and_no_status(plan_tiny, small_disk: Path) -> None:
    run_dir = small_disk / "run"
    record = begin(plan_tiny(steps=100), run_dir, 0)
    record.append(row(1))
    padding = run_dir / METRICS_FILE
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="free some space, then the same command goes on") as raised:
        deque(map(record.append, map(row, range(2, 100))))  # until the page that the file has is full
    assert str(padding) in str(raised.value)
    appended = len(padding.read_bytes().splitlines())
    fill(small_disk)  # what the line that did not fit gave back
    before = contents(run_dir)
    for write in (
        lambda: record.set_status("done"),
        lambda: record.rewind([row(1)]),
        lambda: record.write_steps(SERIES),
        lambda: record.fail("another", "trace"),
    ):
        with pytest.raises(OSError, match="No space left on device; free some space"):
            write()
    record.note("the disk is full")
    assert contents(run_dir) == before  # no part of anything
    assert read_record(run_dir).problems == []
    assert [r["step"] for r in read_record(run_dir).rows] == list(range(1, appended + 1))

    ballast.unlink()
    record.append(row(100))
    record.set_status("done")
    assert [r["step"] for r in read_record(run_dir).rows][-2:] == [appended, 100]
    assert (read_status(run_dir) or {})["notes"] == ["the disk is full"]
    assert all(json.loads(line) for line in padding.read_text().splitlines())
    assert len(os.listdir(run_dir)) == 5
