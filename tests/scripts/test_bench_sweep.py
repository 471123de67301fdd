"""The benchmark of sweeps: that its lists are quick's own, that all ways really train them, and that it says so."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sweep.compose import compose
from sweep.plan import plan_sweep
from sweep.spec import PlannedRun

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_sweep.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(run: PlannedRun) -> tuple[object, ...]:
    return run.spec.model, run.spec.batch_tokens, run.spec.seed, run.spec.optimizer, run.spec.data


def test_its_runs_are_those_of_quick_at_a_share_of_their_length(bench: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(overrides=["experiment=quick"], where=None, share=1 / 8, workers=2)
    everything, small = bench.plan_work(tmp_path, arguments)
    quick = plan_sweep(compose("sweep", ["experiment=quick"]))
    assert [cell(run) for run in everything.runs] == [cell(run) for run in quick]
    for short, whole in zip(everything.runs, quick, strict=True):
        assert short.spec.steps == round(whole.spec.steps / 8)
        assert short.spec.schedule.warmup_steps == whole.spec.schedule.warmup_steps == 30
        assert short.stack is None
    assert everything.whole == pytest.approx(8, rel=0.01)
    shapes = [(run.spec.model.n_layer, run.spec.model.d_model, run.spec.batch_sequences) for run in small.runs]
    assert sorted(set(shapes)) == [(2, 12, 16), *((2, d, b) for d in (16, 32) for b in (2, 4, 8, 16))]
    assert len(shapes) == 13
    for work in (everything, small):  # the command asks for the same runs
        _, folder, *words = work.command
        commanded = plan_sweep(compose("sweep", words, Path(folder)))
        assert [run.run_id for run in commanded] == [run.run_id for run in work.runs]
        assert "launcher.stack=on" in words


def test_a_horizon_is_never_shorter_than_its_warm_up(bench: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(overrides=["experiment=quick"], where="batch_tokens >= 4096", share=1e-3, workers=2)
    [work] = bench.plan_work(tmp_path, arguments)
    assert {run.spec.steps for run in work.runs} == {30 + bench.LEAST_AFTER_WARM_UP}
    assert work.suffixes == ("",)


def test_all_ways_train_the_same_runs(tmp_path: Path) -> None:
    """Two runs of a tiny shape, one a process where they are not stacked."""
    file = tmp_path / "bench.json"
    where = "n_layer == 1 and batch_tokens == 512"
    command = [sys.executable, str(SCRIPT), "experiment=smoke", "--where", where, "--rounds", "1", "--share", "0.9"]
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    names = ("ratio", "ratio_small_batch", "ratio_single", "ratio_single_small_batch")
    assert all(0 < found[name] < math.inf for name in names)
    assert found["ratio"] == found["ratio_small_batch"]  # small batches are all there are
    [(_, runs)] = found["lists"].items()
    assert (runs["runs"], runs["shapes"]) == (2, {"1x8": 2})
    assert set(runs["arms"]) == {"stacked", "single", "plain"}
    for arm in runs["arms"].values():
        assert arm["compute_s"]["median"] > 0
        assert arm["startup_s"]["median"] > 0.5  # a Python that imports torch
        assert 0.1 < arm["peak_gib"]["median"] < 4
    assert max(runs["largest_loss_difference"].values()) < 1e-4
    assert "plain  / stacked: wall" in done.stdout


def test_what_is_computed_for_whole_horizons(bench: ModuleType) -> None:
    done = bench.Done(10, startup_s=4, compute_s=15, idle_s=1, cpu_s=18, peak_gib=None, losses={})
    assert bench.projected(done, 1) == 20 == 2 * done.wall_s
    assert bench.projected(done, 10) == 4 + 160


def test_a_process_that_fails_ends_it(bench: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(overrides=["experiment=smoke"], where="batch_tokens == 2048", share=1, workers=2)
    [work] = bench.plan_work(tmp_path, arguments)
    broken = bench.Work(work.name, work.suffixes, [], work.runs, tmp_path / "nowhere", 1.0, 2)
    with pytest.raises(SystemExit, match="nowhere is no corpus"):
        bench.train("plain", broken, tmp_path / "plain")
