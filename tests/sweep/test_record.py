"""The record as written, damaged, read back and collected."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sweep.collect import collect
from sweep.record import RunRecord, read_record, read_status, read_steps, write_status
from sweep.schema import CURVE_COLUMNS, METRICS_FILE, RUN_COLUMNS, SPEC_FILE, STATUS_FILE, STEPS_FILE, InputError
from sweep.spec import PlannedRun

MANIFEST = {"data_hash": "abc", "unique_tokens": 1e6, "bytes_per_token": 1.0, "device": "a processor"}


def row(step: int, loss: float = 2.0) -> dict[str, float]:
    values = dict.fromkeys(CURVE_COLUMNS, 0.5) | {"step": step, "test_loss": loss}
    del values["run_id"]
    return values


def write(planned: PlannedRun, run_dir: Path, status: str = "done") -> RunRecord:
    record = RunRecord(run_dir)
    record.begin(planned, MANIFEST)
    for step in (5, planned.spec.steps):
        record.append(row(step, loss=10 / step))
    record.write_steps({"train_loss": [3.0, 2.0], "lr": [0.1, 0.2], "grad_norm": [1.0, 1.5]})
    record.set_status(status, step=planned.spec.steps, wall_s=1.5)
    return record


def test_record_reads_back(plan_tiny, tmp_path: Path) -> None:
    planned = plan_tiny()
    write(planned, tmp_path)
    record = read_record(tmp_path)
    assert record.run_id == planned.run_id
    assert record.spec == planned.spec
    assert [r["step"] for r in record.rows] == [5, 20]
    assert record.status["status"] == "done"
    assert record.status["attempts"] == 1
    assert record.problems == []
    steps = read_steps(tmp_path)
    assert {name: values.tolist() for name, values in steps.items()} == {
        "train_loss": [3.0, 2.0],
        "lr": [np.float32(0.1), np.float32(0.2)],
        "grad_norm": [1.0, 1.5],
    }


def test_attempts_are_counted_and_rows_after_the_checkpoint_forgotten(plan_tiny, tmp_path: Path) -> None:
    record = write(plan_tiny(), tmp_path, "failed")
    write_status(tmp_path, "failed", error="killed")
    record.begin(plan_tiny(), MANIFEST)
    status = read_status(tmp_path)
    assert status is not None
    assert (status["attempts"], status["status"], status["error"]) == (2, "running", None)
    record.rewind([row(5)])
    assert [r["step"] for r in read_record(tmp_path).rows] == [5]


def test_another_run_or_other_data_is_refused(plan_tiny, tmp_path: Path) -> None:
    record = write(plan_tiny(), tmp_path)
    with pytest.raises(InputError, match="holds run"):
        record.begin(plan_tiny(seed=1), MANIFEST)
    with pytest.raises(InputError, match="trained on data abc"):
        record.begin(plan_tiny(), {**MANIFEST, "data_hash": "other"})
    assert read_record(tmp_path).status["status"] == "done"


def test_damaged_lines_are_named_and_left_out(plan_tiny, tmp_path: Path) -> None:
    record = write(plan_tiny(), tmp_path, "running")
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 21, "tok\n\0\0\n' + json.dumps(row(22, float("nan"))) + "\n")
    record.append(row(23))
    found = read_record(tmp_path)
    assert [r["step"] for r in found.rows] == [5, 20, 23]
    assert [p.split()[2] for p in found.problems] == ["3", "4", "5"]


def test_unreadable_parts_are_named(plan_tiny, tmp_path: Path) -> None:
    write(plan_tiny(), tmp_path)
    (tmp_path / STEPS_FILE).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=STEPS_FILE):
        read_steps(tmp_path)
    (tmp_path / STATUS_FILE).write_text('{"status": "do')
    assert read_status(tmp_path) is None
    with pytest.raises(InputError, match=STATUS_FILE):
        read_record(tmp_path)


def test_collected_tables_have_the_schema_and_every_status(plan_tiny, tmp_path: Path) -> None:
    for seed, status in enumerate(("done", "diverged", "failed")):
        planned = plan_tiny(seed=seed)
        write(planned, tmp_path / "runs" / planned.run_id, status)
    planned = plan_tiny(seed=9)
    RunRecord(tmp_path / "runs" / planned.run_id).begin(planned, MANIFEST)  # has just begun
    runs, curves = (pd.read_parquet(path) for path in collect(tmp_path))
    assert dict(runs.dtypes.astype(str)) == RUN_COLUMNS
    assert list(runs.columns) == list(RUN_COLUMNS)
    assert dict(curves.dtypes.astype(str)) == CURVE_COLUMNS
    assert sorted(runs["status"]) == ["diverged", "done", "failed", "running"]
    done = runs[runs["status"] == "done"].iloc[0]
    assert done["params"] == 12 * 2 * 16**2
    assert done["flops_per_token"] == 6 * done["params"]
    assert done["flops"] == 6 * done["params"] * done["tokens"]
    assert (done["tokens"], done["batch_tokens"], done["steps"]) == (20 * 8 * 32, 8 * 32, 20)
    assert done["test_loss"] == 0.5
    assert done["warmup_tokens"] == 5 * 8 * 32
    assert pd.isna(done["mfu"])
    assert runs[runs["status"] == "running"]["test_loss"].isna().all()
    assert sorted(curves["step"].unique()) == [5, 20]
    assert len(curves) == 6


def test_damaged_records_are_named_and_the_rest_collected(plan_tiny, tmp_path: Path, caplog) -> None:
    folders = []
    for seed in range(5):
        planned = plan_tiny(seed=seed)
        folders.append(tmp_path / "runs" / planned.run_id)
        write(planned, folders[-1])
    (folders[0] / SPEC_FILE).write_text("{")
    spec = json.loads((folders[1] / SPEC_FILE).read_text())
    (folders[1] / SPEC_FILE).write_text(json.dumps(spec | {"steps": 21}))
    lines = (folders[2] / METRICS_FILE).read_text().splitlines()
    (folders[2] / METRICS_FILE).write_text(lines[0] + "\n" + lines[1][:40])
    (folders[4] / SPEC_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        runs = pd.read_parquet(collect(tmp_path)[0])
    assert list(runs["run_id"]) == [folders[3].name]
    for folder in (*folders[:3], folders[4]):
        assert folder.name in caplog.text


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs"):
        collect(tmp_path)
