"""The benchmark of `isoloss analyze`: its tables, and that it runs the command on them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from analysis.tables.runs import DENSE, extract
from analysis.tables.table import load
from analysis.uncertainty.simulate import Truth
from sweep.schema import RUN_COLUMNS

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_analyze.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_analyze", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_the_runs_and_evaluations_asked_for(bench: ModuleType, tmp_path: Path) -> None:
    bench.write_sweep(tmp_path, 70, 300)
    table = load(tmp_path)
    assert (len(table.runs), len(table.curves)) == (70, 70 * 300)
    assert set(table.runs.columns) == set(RUN_COLUMNS)
    assert all(table.runs[axis].nunique() >= 3 for axis in ("params", "batch_tokens", "lr"))
    runs = extract(table)
    assert max(len(run.ln_tokens) for run in runs) <= DENSE
    best = [run for run in runs if run.lr == pytest.approx(3e-3 * np.sqrt(run.batch / 128))]
    for run in best:
        expected = Truth().loss(run.params, run.batch, np.exp(run.ln_tokens[-1:]) / run.batch)
        assert np.exp(run.ln_loss[-1]) == pytest.approx(expected[0], rel=0.03)


def test_it_writes_what_the_command_costs(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a command that only starts: the analysis itself has its own tests."""
    monkeypatch.setattr(bench, "COMMAND", "import sys; sys.exit('analyze' not in sys.argv)")
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["bench_analyze.py", "--runs", "40", "--evaluations", "5", "--json", str(file)])
    bench.main()
    found = json.loads(file.read_text())
    assert [table["rows"] for table in found["tables"]] == [5, 20, 200]
    assert all(0 < table["cpu_s"] < 10 and table["peak_gib"] < 1 for table in found["tables"])
    assert found["within_limits"]
    assert "grows as rows^" in capsys.readouterr().out
    monkeypatch.setattr(bench, "COMMAND", "raise SystemExit('no such table')")
    with pytest.raises(SystemExit, match="no such table"):
        bench.main()


def test_growth_is_the_exponent(bench: ModuleType) -> None:
    tables = [{"rows": n, "wall_s": 3 * n**0.8} for n in (10, 50, 1000)]
    assert bench.growth(tables, "wall_s") == pytest.approx((0.8, 0.8))
