"""The benchmark of approach 3, with few starts and replicates."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_fit.py"


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> dict[str, object]:
    spec = importlib.util.spec_from_file_location("bench_fit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_fit", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    few = ("--starts", "12", "--bootstraps", "4", "--repeats", "2", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["bench_fit.py", *few, "--json", str(tmp_path / "out.json"), *arguments])
    module.main()
    found: dict[str, object] = json.loads((tmp_path / "out.json").read_text())
    return found


def test_both_reach_the_same_minima(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run(monkeypatch, tmp_path)
    engine, reference = found["engine"], found["reference"]
    assert isinstance(engine, dict)
    assert isinstance(reference, dict)
    assert (found["points"], found["starts"], found["bootstraps"]) == (240, 12, 4)
    assert engine["objective"] == pytest.approx(reference["objective"], rel=1e-4)
    assert engine["objective"] <= reference["objective"] * (1 + 1e-9)
    assert engine["wall_s"]["low"] <= engine["wall_s"]["median"] <= engine["wall_s"]["high"]
    assert engine["estimates"]["alpha"] == pytest.approx(0.3478, abs=0.03)


def test_points_of_a_file_without_its_outliers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = [(10.0**n, 10.0**d) for n in (6, 7, 8) for d in (8, 9, 10)]
    rows = [(n, d, 2 + 300 / n**0.33 + 900 / d**0.33 + 0.01 * (k % 4), 0) for k, (n, d) in enumerate(sizes)]
    frame = pd.DataFrame([*rows, (1e6, 1e6, 9.0, 1)], columns=["params", "tokens", "loss", "outlier"])
    frame.to_csv(tmp_path / "points.csv", index=False)
    assert run(monkeypatch, tmp_path, "--points", str(tmp_path / "points.csv"))["points"] == 9
