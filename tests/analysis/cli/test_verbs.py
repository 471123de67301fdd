"""`isoloss analyze` and `isoloss figures`, from tables on disk to files and printed numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.chain import derive as laws
from analysis.cli.verbs import REPLICATES, run
from analysis.figures import NAMES
from sweep.schema import InputError


@pytest.fixture
def sweep(poor: Any, tmp_path: Path) -> Path:
    """A collected sweep directory."""
    poor.table.runs.to_parquet(tmp_path / "runs.parquet")
    poor.table.curves.to_parquet(tmp_path / "curves.parquet")
    return tmp_path


def test_analyze(sweep: Path, capsys: pytest.CaptureFixture[str], poor: Any) -> None:
    assert run("analyze", [str(sweep), "--bootstrap", "0"]) == 0
    out = sweep / "analysis"
    fits = json.loads((out / "fits.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert fits["laws"]["critical-batch"]["estimates"]["alpha_B"]["value"] == pytest.approx(
        poor.laws.critical.law["alpha_B"].value
    )
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"critical_batch.{s}" for s in ("png", "svg", "pdf", "csv")
    }
    printed = capsys.readouterr().out
    for name in (
        "exponent of N(C_min)",
        "B_crit at loss",
        "rises as the loss falls",
        "alpha_B",
        "exponent of L(C_min)",
    ):
        assert name in printed
    assert "FLOP" in printed
    assert "warning: frontier: " in printed
    assert printed.rstrip().endswith(str(out / "report.html"))
    assert (out / "report.html").is_file()
    points = pd.read_parquet(out / "adjusted.parquet").dropna(subset=["flops_min"])
    assert len(points) > 0
    # Kaplan et al. 2020, Eqs. 5.4 and 5.5, at the B_crit of each point's own loss.
    ratio = points["batch_tokens"] / points["B_crit"]
    np.testing.assert_allclose(points["flops_min"], points["flops"] / (1 + ratio))
    np.testing.assert_allclose(points["steps_min"], points["step"] / (1 + 1 / ratio))


def test_texts_are_pooled_only_when_asked(sweep: Path, poor: Any) -> None:
    runs = poor.table.runs.copy()
    runs.loc[runs.index[0], "data_hash"] = "another"
    runs.to_parquet(sweep / "runs.parquet")
    with pytest.raises(InputError, match="--pool-data"):
        run("analyze", [str(sweep), "--bootstrap", "0"])
    assert run("figures", [str(sweep), "--bootstrap", "0", "--pool-data"]) == 0


def test_figures_of_a_table(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "elsewhere"
    assert run("figures", [str(sweep / "runs.parquet"), "--out", str(out), "--bootstrap", "0"]) == 0
    assert (out / "critical_batch.png").is_file()
    assert "not drawn: isoflop" in capsys.readouterr().out


def test_figures_published(published_files: Path) -> None:
    expected = [f"{name}.{suffix}" for name in NAMES for suffix in ("csv", "pdf", "png", "svg")]
    assert sorted(p.name for p in published_files.iterdir()) == sorted(expected)


@pytest.mark.parametrize("verb", ["analyze", "figures"])
def test_help_shows_an_example_and_loads_little(verb: str) -> None:
    script = (
        f"import sys; from analysis.cli.verbs import run; run('{verb}', ['--help']); sys.exit('pandas' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert f"example: isoloss {verb} " in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze"], "DIR"),
        (["analyze", "/no/such/place"], "no such file"),
        (["figures", "publishd"], "publishd"),
        (["analyze", ".", "--bootstrap", "-3"], "negative"),
        (["analyze", ".", "--boostrap", "3"], "--boostrap"),
        (["figures", "published", "--device", "tpu"], "tpu"),
    ],
)
def test_unusable_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(arguments[0], arguments[1:])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_of_the_bootstrap_is_the_library_s() -> None:
    assert REPLICATES == laws.REPLICATES
