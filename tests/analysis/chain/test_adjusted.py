"""The table of S_min and C_min, whole and in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.chain import adjusted
from analysis.chain.adjusted import Adjusted
from analysis.tables.runs import extract
from analysis.uncertainty.simulate import Truth, synthetic_sweep

TRUTH = Truth()
LAW = (float(np.log(TRUTH.B_star)), -1 / TRUTH.alpha_B)


def test_every_evaluation_has_its_place_in_the_equations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = synthetic_sweep(tokens=5e5, seeds={}, sigma=0.0)
    found = Adjusted(table, extract(table), LAW, (2.5, 3.0))
    frame = found.frame()
    assert frame["run_id"].tolist() == table.curves["run_id"].tolist()
    np.testing.assert_array_equal(frame["test_loss"], table.curves["test_loss"])
    np.testing.assert_allclose(frame["B_crit"], TRUTH.B_crit(frame["test_loss"].to_numpy()))
    steps_min = frame["step"] / (1 + frame["B_crit"] / frame["batch_tokens"])
    np.testing.assert_allclose(frame["steps_min"], steps_min)
    np.testing.assert_allclose(frame["flops_min"], 6 * frame["params"] * frame["tokens_min"])
    assert (frame["extrapolated"] == ~frame["loss"].between(2.5, 3.0)).all()
    monkeypatch.setattr(adjusted, "_BLOCK", 40)
    assert len(list(found.blocks())) > 5
    found.write(tmp_path / "adjusted.parquet")
    written = pd.read_parquet(tmp_path / "adjusted.parquet")
    pd.testing.assert_frame_equal(written, frame, check_dtype=False, check_categorical=False)


def test_without_a_law_or_runs_there_is_nothing_to_say(tmp_path: Path) -> None:
    table = synthetic_sweep(cells={(2, 16): (8, 16)}, tokens=2e5, seeds={})
    frame = Adjusted(table, extract(table), None, (0.0, 0.0)).frame()
    assert frame[["B_crit", "steps_min", "tokens_min", "flops_min"]].isna().all(axis=None)
    assert frame["extrapolated"].all()
    Adjusted(table, [], None, (0.0, 0.0)).write(tmp_path / "none.parquet")
    assert len(pd.read_parquet(tmp_path / "none.parquet")) == 0
