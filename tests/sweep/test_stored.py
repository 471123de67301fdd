"""Records whose files were damaged, edited, copied or linked: readers name them or leave them out, and go on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from sweep.collect import collect
from sweep.launch.freeze import has_result
from sweep.plan import write_plan
from sweep.record import RunRecord, read_status
from sweep.schema import (
    CURVE_COLUMNS,
    MANIFEST_FILE,
    METRICS_FILE,
    PLAN_FILE,
    RUNS_DIR,
    SPEC_FILE,
    STATUS_FILE,
    InputError,
)
from sweep.status import sweep_status
from sweep.status_table import remarks, status_line, status_table
from sweep.stored import last_evaluation, read_rows
from sweep.tracking import Destination, sync

WRONG: list[Any] = ["x", 2.5, None, True, [], {}, float("inf"), 10**400]


@pytest.fixture
def sweep_dir(plan_tiny, tmp_path: Path) -> Path:
    """A sweep of two finished runs."""
    planned = [plan_tiny(seed=seed) for seed in (0, 1)]
    (tmp_path / RUNS_DIR).mkdir()
    write_plan(tmp_path / PLAN_FILE, planned)
    manifest = {"data_hash": "abc", "unique_tokens": 10**6, "bytes_per_token": 1.0, "device": "a processor"}
    for run in planned:
        record = RunRecord(tmp_path / RUNS_DIR / run.run_id)
        record.begin(run, manifest)
        for step in (5, 20):
            record.append({name: 0.5 for name in CURVE_COLUMNS if name != "run_id"} | {"step": step})
        numbers = {"wall_s": 1.5, "tokens_per_s": 1e3, "mfu": None, "epochs": 0.5, "micro_batch": 8, "ranks": 1}
        record.set_status("done", error=None, step=20, claim=[1, 0], attempt=0, **numbers)
        record.note("a note")
    return tmp_path


def victim(sweep_dir: Path) -> Path:
    return min((sweep_dir / RUNS_DIR).iterdir())


def damaged(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`content` with each of its values, also nested ones, replaced by each wrong one, and with each left out."""
    for name, value in content.items():
        yield {key: other for key, other in content.items() if key != name}
        for wrong in WRONG:
            yield {**content, name: wrong}
        if isinstance(value, dict):
            for inner in damaged(value):
                yield {**content, name: inner}


def look(sweep_dir: Path) -> None:
    """Everything that `isoloss status`, and `isoloss sweep` before it trains, read of a sweep."""
    state = sweep_status(sweep_dir)
    with Console(file=(sweep_dir / "shown").open("w")) as console:
        console.print(status_table(state, everything=True), status_line(state), *remarks(state))
    json.dumps(state.to_dict())
    has_result(victim(sweep_dir))
    last_evaluation(victim(sweep_dir))


@pytest.mark.parametrize(("name", "every"), [(STATUS_FILE, 2), (MANIFEST_FILE, 2), (SPEC_FILE, 7)])  # all take a minute
def test_a_value_of_a_wrong_type_stops_no_reader(sweep_dir: Path, name: str, every: int) -> None:
    path = victim(sweep_dir) / name
    for content in [*damaged(json.loads(path.read_text()))][::every]:
        path.write_text(json.dumps(content))
        look(sweep_dir)
        runs, _ = collect(sweep_dir)
        assert len(pd.read_parquet(runs)) in (1, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", [STATUS_FILE, MANIFEST_FILE, SPEC_FILE])
def test_a_file_that_is_no_mapping_is_named(sweep_dir: Path, name: str, text: str, caplog) -> None:
    path = victim(sweep_dir) / name
    path.write_bytes(text.encode("latin1"))
    look(sweep_dir)
    with caplog.at_level(logging.WARNING):
        runs, _ = collect(sweep_dir)
    assert str(path) in caplog.text
    assert len(pd.read_parquet(runs)) == 1


def test_an_evaluation_of_a_wrong_type_is_named_and_left_out(sweep_dir: Path, caplog) -> None:
    path = victim(sweep_dir) / METRICS_FILE
    first, last = path.read_text().splitlines()
    for content in damaged(json.loads(first)):
        path.write_text(f"{json.dumps(content)}\n{last}\n")
        rows, problems = read_rows(victim(sweep_dir))
        kept = content.keys() == json.loads(first).keys() and len(rows) == 2
        assert kept or (len(rows) == 1 and problems == [f"{path} line 1 is damaged and left out"])
        assert all(isinstance(v, int | float) or (k == "test_loss_se" and v is None) for k, v in rows[0].items())
    path.write_text(f"{json.dumps(json.loads(first) | {'lr': 'x'})}\n{last}\n")
    with caplog.at_level(logging.WARNING):
        _, curves = collect(sweep_dir)
    assert f"{path} line 1 is damaged" in caplog.text
    assert len(pd.read_parquet(curves)) == 3


def test_the_newest_evaluation_that_is_whole_is_shown(sweep_dir: Path) -> None:
    path = victim(sweep_dir) / METRICS_FILE
    for content in damaged(json.loads(path.read_text().splitlines()[1])):
        path.write_text(f"{path.read_text().splitlines()[0]}\n{json.dumps(content)}\n")
        look(sweep_dir)
    assert (last_evaluation(victim(sweep_dir)) or {})["step"] == 5


def test_metrics_that_cannot_be_read_are_named(sweep_dir: Path, caplog) -> None:
    path = victim(sweep_dir) / METRICS_FILE
    path.unlink()
    path.mkdir()
    look(sweep_dir)
    with caplog.at_level(logging.WARNING):
        assert len(pd.read_parquet(collect(sweep_dir)[0])) == 1
    assert f"{path} cannot be read (Is a directory)" in caplog.text


def test_a_damaged_status_is_made_anew(sweep_dir: Path) -> None:
    path = victim(sweep_dir) / STATUS_FILE
    path.write_text(json.dumps({"status": "done", "attempts": "many", "notes": 5}))
    assert read_status(path.parent) is None
    RunRecord(path.parent).fail("an error")
    assert (read_status(path.parent) or {})["failures"] == 1


def test_a_copy_or_a_link_counts_as_no_run(sweep_dir: Path, caplog) -> None:
    runs, outside = sweep_dir / RUNS_DIR, sweep_dir / "outside"
    one, other = sorted(runs.iterdir())
    shutil.copytree(one, runs / f"{one.name}.bak")
    shutil.copytree(one, runs / "0123456789abcdef")
    other.rename(outside)
    other.symlink_to(outside)
    with caplog.at_level(logging.WARNING):
        table = pd.read_parquet(collect(sweep_dir)[0])
    assert table["run_id"].tolist() == [one.name]
    assert f"'{one.name}.bak' is no run_id" in caplog.text
    assert f"{runs / '0123456789abcdef'} holds the record of run {one.name}" in caplog.text
    assert f"{other} is a link out of {sweep_dir}" in caplog.text


def test_sync_mirrors_neither_a_copy_nor_a_link(sweep_dir: Path) -> None:
    runs = sweep_dir / RUNS_DIR
    one, other = sorted(runs.iterdir())
    one.rename(runs / f"{one.name}.bak")
    other.rename(sweep_dir / "outside")
    other.symlink_to(sweep_dir / "outside")
    result = sync(sweep_dir, Destination("p", None, "offline"), say=lambda line: None)
    assert result.written == []
    assert len(result.damaged) == 2


def test_an_integer_that_no_float_reaches_is_no_number(plan_tiny) -> None:
    plan = plan_tiny().to_dict()
    plan["spec"]["optimizer"]["lr"] = 10**400
    with pytest.raises(InputError, match="lr must be float"):
        type(plan_tiny()).from_dict(plan)
