"""A sweep's laws are diagnosed: hold-out and residuals of a planted law and of one that bends, influence of sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.chain import diagnose
from analysis.chain.derive import derive
from analysis.chain.results import Laws
from analysis.tables.table import Table
from analysis.uncertainty.simulate import decayed_sweep

BUDGETS = np.geomspace(1e10, 1e13, 6)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def bent(table: Table) -> Table:
    """The same runs with losses that stop falling as they did above 1e12 FLOP."""
    params = table.curves["run_id"].astype(str).map(table.runs.set_index(table.runs["run_id"].astype(str))["params"])
    flops = 6 * params.astype(float) * table.curves["tokens"].astype(float)
    loss = table.curves["test_loss"].astype(float) * np.exp(0.05 * np.log(flops / 1e12).clip(lower=0))
    return replace(table, curves=table.curves.assign(test_loss=loss))


def laws_of(table: Table) -> Laws:
    return derive(table, replicates=0)


def test_a_planted_law_predicts_the_largest_compute() -> None:
    laws = laws_of(decayed_sweep(BUDGETS))
    found = laws.diagnostics["parametric"]
    assert found.residuals is not None
    assert found.residuals.rms < 1e-4
    assert found.residuals.findings == []
    assert found.hold_out is not None
    assert found.hold_out.rms < 1e-3
    assert found.hold_out.held == 12  # the two largest budgets of six sizes
    assert found.influence is not None
    assert len(found.influence.runs) == len(laws.runs)
    assert found.influence.runs["shift"].abs().max() < 1e-3
    assert {"influence", "residuals"}.isdisjoint(w["code"] for w in laws.warnings)


def test_a_law_that_bends_is_seen_to() -> None:
    laws = laws_of(bent(decayed_sweep(BUDGETS, sigma=0.002)))
    found = laws.diagnostics["parametric"]
    assert found.residuals is not None
    assert found.residuals.rms > 0.005
    assert any("bend" in text for text in found.residuals.findings)
    assert ("parametric", "residuals") in {(w["law"], w["code"]) for w in laws.warnings}
    assert found.hold_out is not None
    assert found.hold_out.mean < -0.02  # it gives lower losses than those measured


def test_every_size_of_the_frontier_and_of_isoflop_is_left_out_in_turn(full: Any) -> None:
    sizes = set(full.laws.isoflop.points["group"])
    for name in ("isoflop", "raw", "adjusted"):
        found = full.laws.diagnostics[name].influence
        assert set(found.runs["run"]) == sizes
        assert np.isfinite(found.runs["without"]).sum() >= 4
        assert not found.carried  # of six sizes each carries the line
    assert full.laws.diagnostics["raw"].influence.value == full.laws.frontier.fits["raw"]["N"].exponent.value


def test_diagnoses_stand_with_their_laws_in_json(full: Any) -> None:
    data = json.loads(json.dumps(full.laws.to_json(), allow_nan=False))["laws"]
    assert set(data["parametric"]["diagnosis"]) == {"residuals", "influence", "hold_out"}
    assert set(data["isoflop"]["diagnosis"]) == {"influence", "hold_out"}
    for kind in data["frontier"]["kinds"].values():
        assert set(kind["diagnosis"]) == {"influence"}
    assert "diagnosis" not in data["critical-batch"]


def test_of_many_sizes_neighbours_are_left_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "MOST_SIZES", 3)
    found = laws_of(decayed_sweep(BUDGETS)).diagnostics["raw"].influence
    assert found is not None
    assert set(found.runs["run"]) == {"N = 1536 to 6144", "N = 1.382e+04 to 2.458e+04", "N = 5.53e+04 to 1.475e+05"}
    assert set(found.runs["points"]) == {2}
