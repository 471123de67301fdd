"""Approach 2 on any table: closed forms, planted laws, edges, noise, intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from analysis import isoflop
from analysis.published import REFIT
from analysis.uncertainty.calibration import binomial_band
from sweep.schema import InputError

BUDGETS = np.geomspace(6e18, 3e21, 7)


def planted(
    ratio: float = 2.0, sizes: int = 7, sigma: float = 0.0, seed: int = 0, seeds: int = 1, off: float = 0.0
) -> dict[str, np.ndarray]:
    """Losses of Besiroglu's law at 6 N D = C, sizes around the optimum (`off` in ln N from the middle one)."""
    rng = np.random.default_rng(seed)
    factors = np.exp(off) * ratio ** (np.arange(sizes) - sizes // 2)
    params = np.repeat((REFIT.params_opt(BUDGETS)[:, None] * factors).ravel(), seeds)
    flops = np.repeat(np.repeat(BUDGETS, sizes), seeds)
    loss = REFIT.loss(params, flops / (6 * params)) * np.exp(sigma * rng.standard_normal(len(params)))
    return {"params": params, "loss": loss, "flops": flops}


def exact(flops: float, optimum: float, sizes: np.ndarray) -> np.ndarray:
    """A parabola in ln N: 2 + 0.1 ln^2(N/N_opt), the level falling as C^-0.05."""
    return (2 + 0.1 * np.log(sizes / optimum) ** 2) * flops**-0.05


def test_exact_parabolas_come_back_exactly() -> None:
    """N_opt = 0.3 C^0.6; the loss 2 C^-0.05; curvature 0.05 of ln L (half of 0.1/1: d = 0.1/2)."""
    flops, sizes = np.repeat([1e18, 1e19, 1e20], 6), []
    for c in (1e18, 1e19, 1e20):
        sizes.append(0.3 * c**0.6 * np.array([0.2, 0.4, 0.7, 1.1, 2.5, 6.0]))
    params = np.concatenate(sizes)
    loss = np.array([exact(c, 0.3 * c**0.6, n) for c, n in zip(flops, params, strict=True)])
    order = np.random.default_rng(0).permutation(len(loss))
    found = isoflop.fit(params[order], loss[order], flops[order])
    value = {name: e.value for name, e in found.estimates.items()}
    expected = {"a": 0.6, "b": 0.4, "N_coefficient": 0.3, "D_coefficient": 1 / 1.8, "L_exponent": -0.05,
                "L_coefficient": 2.0, "curvature": 0.05}  # fmt: skip
    assert value == pytest.approx(expected, rel=1e-6)
    assert found.objective == pytest.approx(0, abs=1e-12)
    optima = found.frames["optima"]
    np.testing.assert_allclose(optima["params"], 0.3 * np.array([1e18, 1e19, 1e20]) ** 0.6)
    np.testing.assert_allclose(6 * optima["params"] * optima["tokens"], optima["flops"])
    assert optima["low"].isna().all()
    assert found.interval == "none"
    assert not found.draws


def test_the_parabola_is_numpys_through_five_points() -> None:
    table = planted(sizes=9, sigma=0.002, off=0.3)
    optima = isoflop.fit(**table).frames["optima"]
    for row in optima.itertuples():
        mine = np.isclose(table["flops"], row.flops)
        n, loss = table["params"][mine], table["loss"][mine]
        at = int(loss.argmin())
        near = slice(at - 2, at + 3)
        assert len(n[near]) == 5
        c2, c1, c0 = np.polyfit(np.log(n[near]), loss[near], 2)
        assert [row.c0, row.c1, row.c2] == pytest.approx([c0, c1, c2], rel=1e-6)
        assert row.params == pytest.approx(np.exp(-c1 / (2 * c2)), rel=1e-6)
        assert (row.fit_low, row.fit_high) == pytest.approx((n[near][0], n[near][-1]))


def test_akima_takes_the_minimum_of_the_interpolant_of_ln_loss() -> None:
    table = planted(sigma=0.003)
    optima = isoflop.fit(**table, method="akima").frames["optima"]
    for row in optima[optima["used"]].itertuples():
        mine = np.isclose(table["flops"], row.flops)
        x = np.log(table["params"][mine])
        fine = np.linspace(x[0], x[-1], 20001)
        curve = Akima1DInterpolator(x, np.log(table["loss"][mine]))(fine)
        assert np.log(row.params) == pytest.approx(fine[curve.argmin()], abs=1e-3)
        assert np.log(row.loss) == pytest.approx(curve.min(), abs=1e-7)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_planted_exponents_come_back(method: isoflop.Method) -> None:
    value = isoflop.fit(**planted(ratio=1.5, sizes=9), method=method).estimates
    assert value["a"].value == pytest.approx(REFIT.a, abs=2e-3)
    assert value["b"].value == pytest.approx(REFIT.b, abs=2e-3)
    at = 1e20
    n_opt = value["N_coefficient"].value * at ** value["a"].value
    assert n_opt == pytest.approx(float(REFIT.params_opt(at)), rel=0.03)


def test_d_follows_the_flops_per_token_that_the_table_has() -> None:
    """With k = 6 N^0.9 c, D_opt = C/k(N_opt): b = 1 - 0.9 a."""
    table = planted(ratio=1.5, sizes=9)
    tokens = table["flops"] / (12 * table["params"] ** 0.9)
    value = isoflop.fit(**table, tokens=tokens).estimates
    assert value["b"].value == pytest.approx(1 - 0.9 * value["a"].value, abs=1e-9)
    optimum = value["N_coefficient"].value * 1e20 ** value["a"].value
    d_opt = value["D_coefficient"].value * 1e20 ** value["b"].value
    assert d_opt == pytest.approx(1e20 / (12 * optimum**0.9), rel=1e-6)


def test_edge_minima_are_bounds_and_not_used() -> None:
    table = planted()
    best = np.isclose(table["flops"], BUDGETS[0])
    smallest = table["params"] < 1.5 * REFIT.params_opt(BUDGETS[0])
    cut = {name: v[~(best & smallest)] for name, v in table.items()}
    found, whole = isoflop.fit(**cut), isoflop.fit(**table)
    optima = found.frames["optima"]
    assert optima["edge"].tolist() == ["smallest"] + ["interior"] * 6
    assert optima["params"].isna().tolist() == [True] + [False] * 6
    assert optima["best"][0] == pytest.approx(2 * float(REFIT.params_opt(BUDGETS[0])))
    np.testing.assert_allclose(optima["params"][1:], whole.frames["optima"]["params"][1:])
    assert [w["code"] for w in found.warnings] == ["optimum_at_edge"]


def test_budgets_within_ten_per_cent_are_one_and_lone_sizes_are_counted() -> None:
    table = planted()
    table["flops"] = table["flops"] * np.tile([1, 1.03, 1.01, 1, 1.05, 1.02, 1], 7)
    extra = {"params": np.array([1e9, 2e9]), "loss": np.array([2.5, 2.4]), "flops": np.array([1e23, 1e23])}
    both = {name: np.concatenate([v, extra[name]]) for name, v in table.items()}
    found = isoflop.fit(**both)
    assert len(found.frames["optima"]) == 7
    assert found.points == 49
    (warning,) = found.warnings
    assert warning["code"] == "few_sizes"
    assert warning["message"].startswith("2 points at 1 budgets")


def test_repeats_are_averaged_and_tell_the_noise() -> None:
    table = planted(sigma=0.002, seeds=3)
    single = {name: v[::3] for name, v in table.items()}
    single["loss"] = np.exp(np.log(table["loss"]).reshape(-1, 3).mean(axis=1))
    found = isoflop.fit(**table, bootstrap=300)
    assert found.estimates["a"].value == pytest.approx(isoflop.fit(**single).estimates["a"].value, rel=1e-9)
    told = isoflop.fit(**table, noise=0.002, bootstrap=300)
    assert found.estimates["a"].se == pytest.approx(told.estimates["a"].se, rel=0.3)
    double = isoflop.fit(**table, noise=0.004, bootstrap=300)
    assert double.estimates["a"].se == pytest.approx(2 * (told.estimates["a"].se or 0), rel=0.2)


def test_weights_are_those_of_the_lines() -> None:
    table = planted(sigma=0.004)
    budget = np.repeat(np.arange(7.0), 7)
    found = isoflop.fit(**table, weights=1 + budget)
    optima = isoflop.fit(**table).frames["optima"]
    x, y = np.log(optima["flops"]), np.log(optima["params"])
    assert found.estimates["a"].value == pytest.approx(np.polyfit(x, y, 1, w=np.sqrt(1 + np.arange(7.0)))[0])


def test_standard_errors_of_the_lines_without_simulation() -> None:
    table = planted(sigma=0.004)
    found = isoflop.fit(**table)
    optima = found.frames["optima"]
    _, covariance = np.polyfit(np.log(optima["flops"]), np.log(optima["params"]), 1, cov=True)
    assert found.estimates["a"].se == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-6)
    relative = (found.estimates["N_coefficient"].se or 0) / found.estimates["N_coefficient"].value
    assert relative == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)
    assert found.estimates["curvature"].se is None


def test_intervals_hold_the_truth() -> None:
    """Nominal 90% intervals over 60 tables off the middle of the grid, each of five sizes a factor of two apart."""
    hits = dict.fromkeys(("a", "N_coefficient"), 0)
    truth = {"a": REFIT.a, "N_coefficient": REFIT.G * 6**-REFIT.a}
    for seed in range(60):
        found = isoflop.fit(**planted(sizes=5, sigma=0.003, seed=seed, off=0.4), bootstrap=99, seed=seed)
        for name in hits:
            e = found.estimates[name]
            hits[name] += (e.low or np.inf) <= truth[name] <= (e.high or -np.inf)
    low, high = binomial_band(60)
    assert all(low <= count <= high for count in hits.values()), hits


def test_the_bias_of_a_lopsided_valley_is_found_and_the_interval_allows_for_it() -> None:
    """Without noise, five sizes four times apart put the vertices 3.5% off the minima; the valley knows."""
    found = isoflop.fit(**planted(ratio=4.0, sizes=5, off=0.5), noise=1e-6, bootstrap=20)
    optima = found.frames["optima"]
    true = REFIT.params_opt(optima["flops"].to_numpy())
    wrong = np.abs(np.log(optima["params"] / true))
    moved = np.abs(np.log(np.sqrt(optima["low"] * optima["high"]) / true))
    assert wrong.min() > 0.03
    assert moved.max() < 0.01
    for name, grid in found.grid_bias.items():
        assert found.estimates[name].bias == pytest.approx(grid, rel=0.15), name
    assert found.to_json()["grid_bias"]["a"] == pytest.approx(found.grid_bias["a"])


def test_draws_are_joint_and_the_same_for_the_same_seed() -> None:
    table = planted(sigma=0.003)
    one, other = (isoflop.fit(**table, bootstrap=50, seed=3) for _ in range(2))
    for name, draws in one.draws.items():
        np.testing.assert_array_equal(draws, other.draws[name])
        assert draws.shape == (50,)
    np.testing.assert_allclose(one.draws["a"] + one.draws["b"], 1)
    assert not np.array_equal(one.draws["a"], isoflop.fit(**table, bootstrap=50, seed=4).draws["a"])
    text = json.dumps(one.to_json(), allow_nan=False)
    assert json.loads(text)["optima"][0]["edge"] == "interior"
    assert set(one.to_json()["span"]) == {"params", "tokens", "flops", "loss"}


def test_a_change_of_units_moves_the_coefficients_alone() -> None:
    table = planted(sigma=0.003)
    one = isoflop.fit(**table, bootstrap=40).estimates
    scaled = {**table, "params": table["params"] * 1e-6}
    other = isoflop.fit(**scaled, tokens=table["flops"] / (6 * table["params"]), bootstrap=40).estimates
    for name in ("a", "b", "L_exponent", "L_coefficient", "curvature", "D_coefficient"):
        assert other[name].low == pytest.approx(one[name].low, rel=1e-6), name
    assert other["N_coefficient"].high == pytest.approx(1e-6 * (one["N_coefficient"].high or 0), rel=1e-6)


def test_bad_input_is_refused_in_one_line() -> None:
    table = planted()
    params, loss, flops = table["params"], table["loss"], table["flops"]
    for arguments, message in (
        ((params, np.where(loss == loss[3], np.nan, loss), flops), r"^isoflop: loss nan in row 3 is not a positive"),
        ((params, -loss, flops), r"\(49 such rows\); correct or remove them"),
        ((params[1:], loss, flops), "different lengths"),
        ((params * 0 + 1e9, loss, flops), "the most is 1"),
        ((params[:2], loss[:2], flops[:2]), "no compute .* has 3 model sizes; the most is 2"),
    ):
        with pytest.raises(InputError, match=message) as error:
            isoflop.fit(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="method 'spline' is not known"):
        isoflop.fit(params, loss, flops, method="spline")  # type: ignore[arg-type]


def test_a_single_minimum_makes_no_line() -> None:
    mine = np.isclose((table := planted())["flops"], BUDGETS[2])
    found = isoflop.fit(**{name: v[mine] for name, v in table.items()}, bootstrap=10)
    assert np.isnan(found.estimates["a"].value)
    assert found.frames["optima"]["params"].notna().all()
    assert "few_optima" in {w["code"] for w in found.warnings}
    json.dumps(found.to_json(), allow_nan=False)
