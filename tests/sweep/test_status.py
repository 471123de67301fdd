"""Expected against present, from whatever state the files of a sweep are in."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sweep.compose import compose
from sweep.lease import hold
from sweep.plan import plan_sweep, write_plan
from sweep.record import write_status
from sweep.schema import METRICS_FILE, PLAN_FILE, RUNS_DIR, SPEC_FILE, InputError
from sweep.spec import PlannedRun
from sweep.status import last_evaluation, status_line, status_table, sweep_status


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


@pytest.fixture
def plan(sweep_dir: Path) -> list[PlannedRun]:
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    write_plan(sweep_dir / PLAN_FILE, runs)
    return runs


def record(sweep_dir: Path, planned: PlannedRun, status: str, share: float = 1.0, error: str | None = None) -> Path:
    """A record that has come `share` of the way."""
    run_dir = sweep_dir / RUNS_DIR / planned.run_id
    run_dir.mkdir(parents=True)
    write_status(run_dir, status, attempts=1, error=error)
    step = int(planned.spec.steps * share)
    row = {"step": step, "flops": planned.costs["flops"] * share, "test_loss": 2.5}
    (run_dir / METRICS_FILE).write_text(json.dumps(row) + "\n")
    return run_dir


def test_a_fresh_plan_is_all_planned(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    state = sweep_status(sweep_dir)
    assert (state.expected, state.counts) == (len(plan), {"planned": len(plan)})
    assert state.flops_done == 0
    assert state.flops == sum(run.costs["flops"] for run in plan)


def test_each_run_shows_its_state_and_its_reason(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    record(sweep_dir, plan[0], "done")
    record(sweep_dir, plan[1], "failed", 0.5, "RuntimeError: no luck")
    record(sweep_dir, plan[2], "diverged", 0.5, "loss is not finite at step 9")
    cut_off = record(sweep_dir, plan[3], "running", 0.5)
    with hold(record(sweep_dir, plan[4], "running", 0.5), "run"):
        state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs[:6]] == ["done", "failed", "diverged", "interrupted", "running", "planned"]
    assert state.counts == {"planned": 3, "running": 1, "done": 1, "failed": 1, "diverged": 1, "interrupted": 1}
    assert state.runs[1].error == "RuntimeError: no luck"
    assert state.runs[3].steps_done == plan[3].spec.steps // 2
    shares = [1.0, 0.5, 0.5, 0.5, 0.5]
    assert state.flops_done == pytest.approx(sum(r.costs["flops"] * s for r, s in zip(plan, shares, strict=False)))

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(status_table(state))
    lines = console.export_text().splitlines()
    assert "RuntimeError: no luck" in lines[1]  # what went wrong comes first
    assert cut_off.name in lines[2]
    assert f"{len(plan)} runs: 3 planned, 1 running, 1 done, 1 failed, 1 diverged, 1 interrupted" in status_line(state)


def test_json_holds_what_the_table_shows(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    record(sweep_dir, plan[0], "failed", error="why")
    state = json.loads(json.dumps(sweep_status(sweep_dir).to_dict()))
    assert state["counts"] == {"planned": len(plan) - 1, "failed": 1}
    assert {"run_id": plan[0].run_id, "status": "failed", "error": "why", "active": False}.items() <= state["runs"][
        0
    ].items()


def test_damaged_files_do_not_hide_the_rest(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    damaged = record(sweep_dir, plan[0], "done")
    (damaged / "status.json").write_text('{"status": "do')
    with (record(sweep_dir, plan[1], "running") / METRICS_FILE).open("a") as file:
        file.write('{"step": 99, "test_lo')
    stray = sweep_dir / RUNS_DIR / "stray"
    stray.mkdir()
    state = sweep_status(sweep_dir)
    assert [run.status for run in state.runs[:2]] == ["planned", "running"]
    assert state.runs[1].steps_done == plan[1].spec.steps
    assert len(state.runs) == len(plan)


def test_records_without_a_plan_are_shown(tmp_path: Path) -> None:
    planned = plan_sweep(compose("sweep", ["experiment=smoke"]))[0]
    run_dir = record(tmp_path, planned, "done")
    (run_dir / SPEC_FILE).write_text(json.dumps({"run_id": planned.run_id, **dataclasses.asdict(planned.spec)}))
    state = sweep_status(tmp_path)
    assert [(run.run_id, run.status, run.planned) for run in state.runs] == [(planned.run_id, "done", False)]
    assert "1 runs: 1 done" in status_line(state)


def test_the_newest_evaluation_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    rows = [{"step": step, "padding": "x" * 100} for step in range(1000)]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (last_evaluation(tmp_path) or {})["step"] == 999
    assert last_evaluation(tmp_path / "nowhere") is None


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a sweep directory"):
        sweep_status(tmp_path)
