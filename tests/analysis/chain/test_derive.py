"""The whole chain on synthetic sweeps: planted laws inside their intervals, every warning, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.chain.derive import derive
from analysis.chain.results import Laws
from analysis.efficiency import derived_laws
from analysis.outcome import Estimate
from analysis.predict import parse, predict
from analysis.tables.table import Table, make_table
from analysis.uncertainty.simulate import SMALL_SWEEP, Truth, decayed_sweep, synthetic_sweep

TRUTH = Truth()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table() -> Table:
    return synthetic_sweep(tokens=4e6, seed=5, points_per_decade=6)


@pytest.fixture(scope="module")
def laws(table: Table) -> Laws:
    return derive(table, replicates=60, seed=1)


def codes(laws: Laws) -> set[str]:
    return {w["code"] for w in laws.warnings}


def assert_near(found: Estimate, truth: float) -> None:
    """The interval exists, and the truth lies within it or less than half its width outside."""
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value + 1e-12
    width = found.high - found.low
    assert found.low - width / 2 < truth < found.high + width / 2


def test_every_planted_law_is_near_its_interval(laws: Laws) -> None:
    assert laws.critical is not None
    assert laws.critical.law is not None
    assert laws.critical.rises == "yes"
    assert_near(laws.critical.law["alpha_B"], TRUTH.alpha_B)
    assert_near(laws.critical.law["B_crit"], float(TRUTH.B_crit(laws.critical.at_loss or 0)))
    assert laws.frontier is not None
    for name, value in {**TRUTH.exponents, "L": -TRUTH.alpha_C_min}.items():
        assert_near(laws.frontier.fits["adjusted"][name].exponent, value)
    assert laws.surface is not None
    assert_near(laws.surface.estimates["alpha_N"], TRUTH.alpha_N)
    assert_near(laws.surface.estimates["alpha_S"], TRUTH.alpha_S)
    assert_near(laws.surface.estimates["alpha_C_min"], TRUTH.alpha_C_min)


def test_adjusted_points_follow_the_batch_equations(laws: Laws, table: Table) -> None:
    frame = laws.adjusted.frame()
    assert len(frame) == len(table.curves)
    np.testing.assert_allclose(frame["steps_min"] * (1 + frame["B_crit"] / frame["batch_tokens"]), frame["step"])
    np.testing.assert_allclose(6 * frame["params"] * frame["B_crit"] * frame["steps_min"], frame["flops_min"])
    np.testing.assert_allclose(frame["tokens_min"] * 6 * frame["params"], frame["flops_min"])
    inside = frame[~frame["extrapolated"]]
    np.testing.assert_allclose(inside["B_crit"], TRUTH.B_crit(inside["loss"].to_numpy()), rtol=0.15)
    # One S_min at one size and loss, whatever the batch.
    swept = inside[(inside["params"] == 24576) & (inside["loss"].between(2.2, 2.6))]
    expected = np.array([float(TRUTH.S_min(24576, loss)) for loss in swept["loss"]])
    np.testing.assert_allclose(swept["steps_min"], expected, rtol=0.2)


def test_json_is_plain_complete_and_repeats(laws: Laws, table: Table) -> None:
    text = json.dumps(laws.to_json(), allow_nan=False)
    data = json.loads(text)
    assert set(data["laws"]) >= {"critical-batch", "frontier", "isoflop", "parametric", "kaplan-ns"}
    for name in ("critical-batch", "isoflop", "parametric", "kaplan-ns"):
        for estimate in data["laws"][name]["estimates"].values():
            assert set(estimate) >= {"value", "se", "low", "high"}
    lines = {f"{quantity}_{part}" for quantity in "SBL" for part in ("exponent", "coefficient")}
    adjusted = data["laws"]["frontier"]["kinds"]["adjusted"]
    assert lines | {"a", "b", "N_coefficient", "D_coefficient"} <= set(adjusted["estimates"])
    assert data["meta"]["runs"] == len(table.runs)
    assert data["meta"]["flops_total"] == pytest.approx(float(table.runs["flops"].sum()))
    again = derive(table, replicates=3, seed=1).to_json()
    once_more = derive(table, replicates=3, seed=1).to_json()
    for result in (again, once_more):
        for part in (result["meta"], *result["laws"].values()):
            part.pop("seconds", None)
    assert json.dumps(again) == json.dumps(once_more)


def test_json_carries_the_joint_draws_and_what_was_fitted(laws: Laws) -> None:
    data = laws.to_json()["laws"]
    assert laws.critical is not None
    assert laws.surface is not None
    assert laws.parametric is not None
    for name, estimates in (
        ("critical-batch", laws.critical.law or {}),
        ("kaplan-ns", laws.surface.estimates),
        ("parametric", laws.parametric.estimates),
    ):
        draws = data[name]["draws"]
        assert set(draws) == set(estimates)
        assert {len(values) for values in draws.values()} == {60}
        assert data[name]["convention"] == "kaplan"
    # Joint: the law of each replicate is its own.
    slope, alpha = (np.array(data["critical-batch"]["draws"][name], dtype=float) for name in ("slope", "alpha_B"))
    np.testing.assert_allclose(slope * alpha, -1)
    parts = [np.array(data["kaplan-ns"]["draws"][name], dtype=float) for name in ("alpha_S", "alpha_N")]
    total = 1 / (1 / parts[0] + 1 / alpha + 1 / parts[1])
    np.testing.assert_allclose(total, np.array(data["kaplan-ns"]["draws"]["alpha_C_min"], dtype=float))
    span = data["parametric"]["span"]
    assert set(span) == {"params", "tokens", "flops", "loss"}
    points = laws.parametric.points
    assert span["flops"][1] == pytest.approx(6 * (points["params"] * points["tokens"]).max())
    assert data["kaplan-ns"]["span"]["flops"][1] < span["flops"][1]  # C_min lies below C


def test_predictions_carry_the_joint_draws_to_the_planted_optimum(laws: Laws) -> None:
    fits = parse(laws.to_json())
    spans = {approach.name: approach.span for approach in fits.approaches}
    flops = 20 * spans["kaplan-ns"]["flops"][1]  # ten times the largest C_min
    found = {answer.approach: answer for answer in predict(fits, flops=flops).answers}
    assert set(found) >= {"frontier raw", "frontier adjusted", "isoflop", "parametric", "kaplan-ns"}
    theta = (np.log(TRUTH.N_c) * TRUTH.alpha_N, TRUTH.alpha_N, np.log(TRUTH.S_c) * TRUTH.alpha_S, TRUTH.alpha_S)
    planted = derived_laws(theta, (np.log(TRUTH.B_star), -1 / TRUTH.alpha_B))
    surface = found["kaplan-ns"]
    assert surface.extrapolation == pytest.approx(10)
    for name, law in {"params": "N", "tokens": "D", "batch_tokens": "B", "loss": "L"}.items():
        estimate = surface.values[name]
        assert estimate is not None
        assert_near(estimate, float(planted[law].at(flops / 2)))


def test_without_replicates_there_are_values_and_no_intervals(table: Table, laws: Laws) -> None:
    quick = derive(table, replicates=0)
    assert quick.frontier is not None
    assert laws.frontier is not None
    one, other = quick.frontier.fits["adjusted"]["N"].exponent, laws.frontier.fits["adjusted"]["N"].exponent
    assert one.value == other.value
    assert (one.se, one.low, one.high) == (None, None, None)


def test_a_law_that_cannot_be_derived_is_skipped_with_the_reason() -> None:
    laws = derive(synthetic_sweep(cells={(2, 16): (8, 16)}, seeds={}, tokens=3e5), replicates=2)
    assert (laws.critical, laws.frontier, laws.isoflop, laws.parametric, laws.surface) == (None,) * 5
    skipped = {w["law"]: w["message"] for w in laws.warnings if w["code"] == "skipped"}
    assert set(skipped) == {"critical-batch", "frontier", "isoflop", "parametric"}
    assert "3 or more batch sizes" in skipped["critical-batch"]
    assert laws.adjusted.frame()["B_crit"].isna().all()
    json.dumps(laws.to_json(), allow_nan=False)


def pooled(tables: Sequence[Table], **changes: object) -> Table:
    runs = pd.concat([t.runs for t in tables]).assign(data_hash="same", **changes)
    return make_table(runs, pd.concat([t.curves for t in tables]))


def test_decayed_and_undecayed_runs_are_never_mixed() -> None:
    open_runs = synthetic_sweep(tokens=1e6, sigma=0, seeds={}, points_per_decade=6)
    closed = decayed_sweep(np.geomspace(1e10, 1e12, 4))
    laws = derive(pooled([open_runs, closed]), replicates=0)
    assert "mixed_schedules" in codes(laws)
    assert laws.parametric is not None
    assert laws.parametric.kind == "decayed"
    assert laws.parametric.estimates["alpha"].value == pytest.approx(0.35, rel=1e-3)
    assert set(laws.parametric.points["run_id"]) == set(closed.runs["run_id"])
    assert laws.isoflop is not None
    assert laws.isoflop.kind == "decayed"
    assert set(laws.adjusted.frame()["run_id"]) == set(open_runs.runs["run_id"])


def test_warnings_of_a_table() -> None:
    cells = {(1, 16): (16,), **SMALL_SWEEP, (2, 20): (4,)}
    table = synthetic_sweep(cells=cells, tokens=5e5, seeds={}, points_per_decade=5)
    runs = table.runs.assign(epochs=5.0)
    runs.loc[runs["run_id"] == "3x64-16-1-0", "status"] = "diverged"
    other = runs.tail(1).assign(run_id="other", weight_decay=0.1, status="done")
    curves = pd.concat([table.curves, table.curves[table.curves["run_id"] == "2x20-4-1-0"].assign(run_id="other")])
    laws = derive(make_table(pd.concat([runs, other]), curves), replicates=0)
    expected = {"no_seeds", "many_epochs", "not_done", "several_recipes", "one_layer", "other_batch", "optimum_at_edge"}
    assert codes(laws) >= expected
    assert laws.meta["runs_dropped"] == {"3x64-16-1-0": "diverged"}
    assert laws.meta["sigma_source"] == "assumed"


def test_runs_that_end_in_the_warmup_leave_nothing_to_derive() -> None:
    table = synthetic_sweep(cells={(2, d): (16,) for d in (8, 16, 24, 32)}, tokens=3e5, seeds={})
    table.runs["warmup_tokens"] = 1e9
    laws = derive(table, replicates=0)
    assert (laws.critical, laws.frontier, laws.isoflop, laws.parametric, laws.surface) == (None,) * 5
    assert laws.slices.empty


def test_only_one_layer_models_are_used_with_a_warning() -> None:
    cells = {(1, d): (16,) for d in (8, 16, 24, 32, 48)}
    laws = derive(synthetic_sweep(cells=cells, tokens=5e5, seeds={}, points_per_decade=5), replicates=0)
    (message,) = [w["message"] for w in laws.warnings if w["code"] == "one_layer"]
    assert "1x8, 1x16, 1x24, 1x32, 1x48" in message
    assert laws.frontier is not None


def test_whether_b_crit_rises_is_not_said_without_intervals(table: Table) -> None:
    critical = derive(table, replicates=0).critical
    assert critical is not None
    assert critical.rises == "unknown"


def test_batches_that_do_not_bracket_b_crit_give_no_law() -> None:
    """Only batches far above B_crit: S hardly depends on them."""
    cells = {shape: (512, 1024, 2048) if shape == (2, 16) else (512,) for shape in SMALL_SWEEP}
    laws = derive(synthetic_sweep(cells=cells, tokens=2e5, sigma=0, seeds={}), replicates=0)
    assert laws.critical is not None
    assert laws.critical.law is None
    assert {"not_bracketed", "no_law"} <= codes(laws)
    assert laws.surface is None
    assert laws.frontier is None or set(laws.frontier.fits) <= {"raw"}


def test_approaches_that_disagree_are_reported() -> None:
    """Undecayed runs of one law, decayed runs of another: raw frontier 0.7, isoflop and parametric 0.53."""
    open_runs = synthetic_sweep(tokens=4e6, sigma=5e-4, points_per_decade=6)
    closed = decayed_sweep(np.geomspace(1e10, 1e12, 5), sigma=5e-4)
    laws = derive(pooled([open_runs, closed]), replicates=20)
    assert "disagreement" in codes(laws)
