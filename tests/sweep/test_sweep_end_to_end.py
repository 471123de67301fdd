"""Real sweeps through the command: runs that fail or diverge, killed workers, stopped and killed launchers."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Commands, finish, until

from sweep.holder import Holder
from sweep.lease import is_held, newest_number
from sweep.record import read_record, read_status, read_steps
from sweep.schema import CHECKPOINT_DIR, PLAN_FILE, RUNS_DIR
from sweep.status import sweep_status
from sweep.stored import last_evaluation

# One run long enough to be hit in the middle, with a checkpoint all the time.
LONG = ["grid.blocks.run.product.batch_tokens=[128]", "horizon.steps=2500", "execution.checkpoint_seconds=0.2",
        "execution.eval_points_per_decade=12"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


def status(run_dir: Path) -> dict[str, Any]:
    return read_status(run_dir) or {}


def test_a_sweep_goes_on_past_failing_and_diverging_runs(commands: Commands) -> None:
    asked = "tracking=wandb", "tracking.mode=offline", "launcher.workers=2"
    wild = "+grid.blocks.wild.product={batch_tokens:[128,256]}", "+grid.blocks.wild.set.optimizer.lr=1e6"
    plan = commands.plan(*wild)
    good, failing, diverging, closed = (commands.folder / "out" / RUNS_DIR / run.run_id for run in plan)
    obstacle = failing / "metrics.jsonl"  # a folder where the record wants a file
    obstacle.mkdir(parents=True)
    closed.write_text("a file where the record's folder should be")

    code, out, err = commands.sweep(*wild, *asked)
    assert code == 1
    assert re.fullmatch(r"isoloss: 2 of 4 runs failed, the first \w{16}: \w+Error: .*\n", err)
    assert [status(run_dir)["status"] for run_dir in (good, failing, diverging)] == ["done", "failed", "diverged"]
    assert (status(failing)["attempts"], status(failing)["failures"]) == (3, 3)  # two retries
    assert f"run {failing.name} failed and is tried again" in out
    assert "IsADirectoryError" in (failing / "error.txt").read_text()
    assert len(re.findall(r"  (done|failed|diverged) ", out)) == 4
    assert "%|" not in out  # no bar without a terminal
    mirrored = commands.folder / "out" / "wandb"
    assert {path.name for path in mirrored.glob("*.json")} == {f"{run_dir.name}.json" for run_dir in (good, diverging)}

    code, out, _ = commands.run("status", "out", "--json", "-")
    state = json.loads(out)
    assert (code, state["expected"]) == (0, 4)
    assert state["counts"] == {"planned": 1, "done": 1, "failed": 1, "diverged": 1}
    assert "IsADirectoryError" in next(run["error"] for run in state["runs"] if run["run_id"] == failing.name)

    obstacle.rmdir()
    closed.unlink()
    before = (good / "metrics.jsonl").stat().st_mtime_ns
    code, out, err = commands.sweep(*wild)
    assert (code, err) == (0, "")
    assert "4 runs, 2 of them finished" in out
    assert (status(failing)["status"], status(failing)["attempts"], status(failing)["error"]) == ("done", 4, None)
    assert (status(good)["attempts"], (good / "metrics.jsonl").stat().st_mtime_ns) == (1, before)
    assert (status(diverging)["attempts"], status(closed)["status"]) == (1, "diverged")

    frozen = (commands.folder / "out" / PLAN_FILE).read_bytes()
    code, _, err = commands.sweep()
    assert code == 2
    assert "belongs to another plan" in err
    assert (commands.folder / "out" / PLAN_FILE).read_bytes() == frozen

    code, out, err = commands.run("collect", "out")
    assert code == 0, err
    table = pd.read_parquet(commands.folder / "out" / "runs.parquet")
    assert sorted(table.status) == ["diverged", "diverged", "done", "done"]


def test_a_killed_worker_fails_its_run_which_then_resumes_bit_identically(commands: Commands) -> None:
    (planned,) = commands.plan(*LONG)
    undisturbed = commands.start("sweep", *commands.sweep_arguments(*LONG, f"sweep_dir={commands.folder}/calm"))
    sweep = commands.start("sweep", *commands.sweep_arguments(*LONG))
    run_dir = commands.folder / "out" / RUNS_DIR / planned.run_id
    os.kill(worker_in_the_middle(run_dir, sweep), signal.SIGKILL)

    code, out, err = finish(sweep)
    assert (code, err) == (0, ""), out
    assert f"run {planned.run_id} failed and is tried again: worker killed by signal 9" in out
    assert (status(run_dir)["status"], status(run_dir)["attempts"]) == ("done", 2)
    assert finish(undisturbed)[0] == 0
    assert_same_curve(run_dir, commands.folder / "calm" / RUNS_DIR / planned.run_id)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_with_the_same_command(commands: Commands, ending: signal.Signals) -> None:
    (planned,) = commands.plan(*LONG)
    sweep = commands.start("sweep", *commands.sweep_arguments(*LONG))
    out_dir = commands.folder / "out"
    run_dir = out_dir / RUNS_DIR / planned.run_id
    worker = worker_in_the_middle(run_dir, sweep)

    os.kill(worker, signal.SIGSTOP)  # so that it is still in the middle afterwards
    code, _, err = commands.sweep(*LONG)
    assert code == 2
    assert f"is in use by process {sweep.pid}" in err
    assert sweep_status(out_dir).runs[0].shown == "running"
    os.kill(worker, signal.SIGCONT)

    sweep.send_signal(ending)
    code, out, err = finish(sweep)
    if ending != signal.SIGKILL:
        assert (code, err) == (1, "isoloss: stopped; the same command goes on with the sweep\n")
        assert "stopping" in out
        assert out.endswith(f"{out_dir}: 1 interrupted\n")
    until(lambda: not is_held(run_dir))  # the worker outlives a killed launcher by a checkpoint at most
    stopped_at = (last_evaluation(run_dir) or {})["step"]
    assert stopped_at < planned.spec.steps
    assert sweep_status(out_dir).runs[0].shown == "interrupted"
    assert list((run_dir / CHECKPOINT_DIR).iterdir())

    code, _, err = commands.sweep(*LONG)
    assert (code, err) == (0, "")
    assert (status(run_dir)["status"], status(run_dir)["attempts"]) == ("done", 2)
    assert [row["step"] for row in read_record(run_dir).rows][-1] == planned.spec.steps


def worker_in_the_middle(run_dir: Path, sweep: Any) -> int:
    """Wait until the run has a checkpoint and some evaluations behind it; the process that trains it."""
    until(lambda: (last_evaluation(run_dir) or {}).get("step", 0) >= 50, sweep)
    until(lambda: any((run_dir / CHECKPOINT_DIR).glob("*.safetensors")), sweep)
    holder = Holder.read((run_dir / f"lease.{newest_number(run_dir)}").read_text())
    assert holder is not None
    return holder.pid


def assert_same_curve(one: Path, other: Path) -> None:
    """Two records hold the same numbers, to the last bit."""
    rows = [[{**row, "elapsed_s": None} for row in read_record(run_dir).rows] for run_dir in (one, other)]
    assert rows[0] == rows[1]
    steps = [read_steps(run_dir) for run_dir in (one, other)]
    for name, values in steps[0].items():
        np.testing.assert_array_equal(values, steps[1][name])
