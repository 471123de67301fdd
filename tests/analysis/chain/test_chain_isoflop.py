"""Loss against size at fixed compute, on planted laws."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.chain.isoflop import derive_isoflop, derive_isoflop_decayed
from analysis.outcome import Warnings
from analysis.tables.runs import SeedNoise, extract
from analysis.tables.sizes import LEAST_SIZES, make_sizes
from analysis.tables.table import make_table
from analysis.uncertainty.bootstrap import Samples, simulate
from analysis.uncertainty.simulate import SMALL_SWEEP, decayed_sweep, synthetic_sweep
from sweep.schema import InputError

A_TRUE = 0.4 / 0.75  # beta / (alpha + beta) of decayed_sweep
SHAPES = [(2, 8 * k) for k in (1, 2, 3, 4, 6, 8, 12)]


def test_exponents_of_decayed_runs() -> None:
    budgets = np.geomspace(1e11, 1e13, 5)
    found = derive_isoflop_decayed(Samples(extract(decayed_sweep(budgets, shapes=SHAPES))), Warnings())
    assert found.kind == "decayed"
    np.testing.assert_allclose(found.optima["budget"], budgets, rtol=0.05)
    assert found.fit is not None
    assert found.fit["a"].value == pytest.approx(A_TRUE, abs=0.02)
    assert found.fit["a"].value + found.fit["b"].value == pytest.approx(1)
    row = found.optima[found.optima["used"]].iloc[0]
    n_opt = found.fit["N_coefficient"].value * row["budget"] ** found.fit["a"].value
    d_opt = found.fit["D_coefficient"].value * row["budget"] ** found.fit["b"].value
    assert 6 * n_opt * d_opt == pytest.approx(row["budget"])
    assert n_opt == pytest.approx(row["params"], rel=0.2)


def test_the_parabola_is_the_unweighted_one_through_five_points() -> None:
    found = derive_isoflop_decayed(Samples(extract(decayed_sweep([1e12], shapes=SHAPES))), Warnings())
    row = found.optima.iloc[0]
    points = found.points[(found.points["params"] >= row["fit_low"]) & (found.points["params"] <= row["fit_high"])]
    assert len(points) == 5
    lowest = found.points.loc[found.points["loss"].idxmin(), "params"]
    assert sorted(points["params"])[2] == lowest
    c2, c1, c0 = np.polyfit(np.log(points["params"]), points["loss"], 2)
    assert [row["c0"], row["c1"], row["c2"]] == pytest.approx([c0, c1, c2], rel=1e-6)
    assert row["params"] == pytest.approx(np.exp(-c1 / (2 * c2)))
    assert found.fit is None  # one optimum makes no line


def test_undecayed_curves_are_read_at_automatic_budgets() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}))
    found = derive_isoflop(Samples(runs), make_sizes(runs, 2048.0), Warnings())
    assert found.kind == "undecayed"
    assert found.points.groupby("budget").size().min() >= LEAST_SIZES
    assert found.optima["used"].sum() >= 4
    np.testing.assert_allclose(np.diff(np.log(found.optima["budget"]), 2), 0, atol=1e-9)
    np.testing.assert_allclose(6 * found.points["params"] * found.points["tokens"], found.points["budget"])
    by_id = {run.run_id: run for run in runs}
    for row in found.points.iloc[::5].itertuples():
        run = by_id[row.run_id]
        assert (run.params, run.batch) == (row.params, 2048)
        assert np.log(row.loss) == pytest.approx(float(run.curve.ln_loss(np.log([row.tokens]))[0]), abs=2e-3)


def test_optima_at_an_edge_are_bounds() -> None:
    warnings = Warnings()
    found = derive_isoflop_decayed(
        Samples(extract(decayed_sweep([5e9, 1e12, 1e15], shapes=SHAPES, batch=256))), warnings
    )
    assert found.optima["edge"].tolist() == ["smallest", "interior", "largest"]
    assert found.optima["params"].isna().tolist() == [True, False, True]
    assert warnings[0]["code"] == "optimum_at_edge"


def test_interval_covers_the_planted_exponent() -> None:
    runs = extract(decayed_sweep(np.geomspace(1e11, 1e13, 5), shapes=SHAPES, sigma=0.004, seed=1))
    samples = simulate(runs, SeedNoise(0.004, 1.0, 0), 0.0, 60, np.random.default_rng(0))
    found = derive_isoflop_decayed(samples, Warnings())
    assert found.fit is not None
    a = found.fit["a"]
    assert a.low is not None
    assert a.high is not None
    assert a.low < A_TRUE < a.high
    assert a.high - a.low < 0.4


def test_too_few_sizes_are_refused() -> None:
    runs = extract(synthetic_sweep(cells=dict(list(SMALL_SWEEP.items())[:3]), tokens=5e5, seeds={}))
    with pytest.raises(InputError, match="3 model sizes"):
        derive_isoflop(Samples(runs), make_sizes(runs, 2048.0), Warnings())
    with pytest.raises(InputError, match="4 or more sizes end"):
        derive_isoflop_decayed(Samples(extract(decayed_sweep([1e10], shapes=SHAPES[:3]))), Warnings())


def rates(*factors: float) -> tuple[float, dict[str, str]]:
    """The exponent of decayed runs at these multiples of the best learning rate, and the warnings by their codes."""
    warnings = Warnings()
    table = decayed_sweep(np.geomspace(1e11, 1e13, 5), shapes=SHAPES, lr_factors=factors)
    found = derive_isoflop_decayed(Samples(extract(table)), warnings)
    assert found.fit is not None
    return found.fit["a"].value, {item["code"]: item["message"] for item in warnings}


def test_each_size_and_budget_is_read_at_its_best_learning_rate() -> None:
    a, said = rates(0.5, 1.0, 2.0)
    assert a == pytest.approx(rates(1.0)[0])
    assert "lr_at_edge" not in said
    assert "one_rate" not in said


def test_rates_at_the_edge_of_their_axis_and_single_ones_are_said() -> None:
    assert rates(1.0, 2.0)[1]["lr_at_edge"].startswith("at 35 of 35 sizes and budgets")
    assert rates(1.0)[1]["one_rate"].startswith("every size was run at one learning rate")
    table = decayed_sweep([1e11, 1e12], shapes=SHAPES, lr_factors=(0.5, 1.0, 2.0))
    keep = (table.runs["flops"] < 3e11) | (table.runs["lr"] == 3e-3)
    runs = table.runs[keep].reset_index(drop=True)
    curves = table.curves[table.curves["run_id"].isin(runs["run_id"])].reset_index(drop=True)
    warnings = Warnings()
    derive_isoflop_decayed(Samples(extract(make_table(runs, curves))), warnings)
    assert next(w["message"] for w in warnings if w["code"] == "one_rate").startswith("7 of 14 sizes and budgets were")
