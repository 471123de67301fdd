"""Kaplan's laws of the loss and the derived exponents from whole sweeps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from analysis.chain.kaplan_loss import derive_kaplan
from analysis.outcome import Warnings
from analysis.tables.runs import extract
from analysis.tables.sizes import make_sizes
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.simulate import Truth, decayed_sweep
from sweep.schema import PF_DAY

TRUTH = Truth()


def test_all_laws_of_a_full_sweep(full: Any) -> None:
    kaplan = full.laws.kaplan
    assert list(kaplan.laws) == ["kaplan-n", "kaplan-c", "kaplan-c-min", "kaplan-derived"]
    written = json.loads(json.dumps(full.laws.to_json(), allow_nan=False))["laws"]
    assert written["kaplan-n"]["estimates"]["alpha_N"]["value"] == kaplan.laws["kaplan-n"].estimates["alpha_N"].value
    assert [row["quantity"] for row in written["kaplan-derived"]["exponents"]] == ["N", "B", "S", "D", "L"]
    assert written["kaplan-n"]["convention"] == "kaplan"
    assert not any(w["law"] == "kaplan-d" for w in full.laws.warnings)  # the sweep was not made for it


def test_derived_exponents_are_near_the_truth_and_beside_the_measured(full: Any) -> None:
    table = full.laws.kaplan.exponents.set_index("quantity")
    for name, exponent in TRUTH.exponents.items():
        assert table.loc[name, "derived"] == pytest.approx(exponent, abs=0.04), name
    assert table.loc["L", "derived"] == pytest.approx(-TRUTH.alpha_C_min, abs=0.004)
    assert full.laws.frontier is not None
    for name, law in full.laws.frontier.fits["adjusted"].items():
        assert table.loc[name, "measured"] == law.exponent.value
    assert (table["derived_low"] <= table["derived_high"]).all()


def test_draws_of_the_surface_and_of_what_it_implies_are_the_same_sweeps(full: Any) -> None:
    assert full.laws.surface is not None
    surface, derived = full.laws.surface.draws, full.laws.kaplan.laws["kaplan-derived"].draws
    np.testing.assert_allclose(derived["a"], surface["alpha_C_min"] / surface["alpha_N"])
    np.testing.assert_allclose(derived["L_exponent"], -surface["alpha_C_min"])
    np.testing.assert_allclose(derived["a"] + derived["b"], 1)


def test_loss_of_compute_is_the_frontiers_line(full: Any) -> None:
    assert full.laws.frontier is not None
    for kind, name, suffix in (("raw", "kaplan-c", ""), ("adjusted", "kaplan-c-min", "_min")):
        e = {key: value.value for key, value in full.laws.kaplan.laws[name].estimates.items()}
        line = full.laws.frontier.fits[kind]["L"]
        loss = (e[f"C_c{suffix}"] * PF_DAY / 1e11) ** e[f"alpha_C{suffix}"]
        assert loss == pytest.approx(float(line.at(1e11)))
        assert full.laws.kaplan.laws[name].points == len(full.laws.kaplan.laws[name].frames["points"]) > 0


def test_loss_of_size_says_how_far_from_converged_it_is(full: Any) -> None:
    found = full.laws.kaplan.laws["kaplan-n"]
    points = found.frames["points"]
    assert list(points["params"]) == sorted(points["params"])
    said = [w["message"] for w in full.laws.warnings if w["law"] == "kaplan-n" and w["code"] == "not_converged"]
    assert (points["falling"] > 0.01).any()
    assert len(said) == 1
    assert f"{points['falling'].max():.1%}" in said[0]


def test_converged_losses_give_the_planted_power() -> None:
    """Decayed runs whose loss depends on N alone."""
    table = decayed_sweep([1e11], {"B": 1e-9, "E": 0.0, "alpha": 0.2})
    runs = extract(table)
    warnings = Warnings()
    kaplan = derive_kaplan(Samples(runs), make_sizes(runs, None), None, None, None, 0.004, warnings)
    assert list(kaplan.laws) == ["kaplan-n"]
    estimates = kaplan.laws["kaplan-n"].estimates
    assert estimates["alpha_N"].value == pytest.approx(0.2, rel=1e-6)
    assert estimates["N_c"].value == pytest.approx(20.0**5, rel=1e-5)
    assert not warnings
    assert kaplan.exponents.empty
