"""The benchmark of very large sweeps: that its sweeps are real ones, and that it says what it measures."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from sweep.schema import CURVES_TABLE, RUNS_DIR, RUNS_TABLE
from sweep.status import sweep_status

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scale.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_scale", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_real_commands_and_a_real_run(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISOLOSS_CACHE", "set here so that it is put back")
    monkeypatch.setattr(bench.tempfile, "TemporaryDirectory", lambda prefix: nullcontext(str(tmp_path)))  # to look in
    file = tmp_path / "out.json"
    sizes = ["--planned", "300", "--recorded", "130", "--evaluations", "7", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", *sizes, "--json", str(file)])
    bench.main()
    found = json.loads(file.read_text())
    assert list(found["costs"]) == list(bench.WHAT)
    for cost in found["costs"].values():
        assert 0 < cost["wall_s"]["low"] <= cost["wall_s"]["median"] <= cost["wall_s"]["high"]
        assert cost["peak_gib"]["median"] > 0.01
    assert 500 < found["plan_bytes_a_run"] < 5000
    done = found["run_directory"]["done"]
    assert {"spec.json", "manifest.json", "status.json", "metrics.jsonl", "steps.npz"} < set(done["files"])
    assert done["bytes"] == sum(done["files"].values())
    assert all(when["beside_shards"] <= bench.MAX_FILES for when in found["run_directory"].values())
    printed = capsys.readouterr().out
    assert "bound: 60 s, 2 GiB" in printed
    assert "130 x 7" in printed

    state = sweep_status(tmp_path / "sweep")
    assert state.counts == {"done": 130}
    assert state.flops_done == pytest.approx(state.flops)
    runs, curves = (pd.read_parquet(tmp_path / "sweep" / name) for name in (RUNS_TABLE, CURVES_TABLE))
    assert (len(runs), len(curves)) == (130, 130 * 7)
    assert runs["run_id"].nunique() == 130
    assert len(list((tmp_path / "sweep" / RUNS_DIR).iterdir())) == 130


def test_a_command_that_fails_ends_it(bench: ModuleType) -> None:
    with pytest.raises(SystemExit, match="nowhere"):
        bench.isoloss("status", "nowhere")
