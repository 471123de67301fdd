"""Kaplan's surface on its own published constants and on planted ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis import engine, kaplan
from analysis.chain.frontier import EVERYWHERE
from analysis.chain.surfaces import derive_slices, derive_surface, lines_of_slices
from analysis.outcome import Warnings
from analysis.tables.runs import extract
from analysis.tables.sizes import make_sizes
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.simulate import Truth, synthetic_sweep
from sweep.schema import InputError

TRUTH = Truth()
LAW = np.array([[np.log(TRUTH.B_star), -1 / TRUTH.alpha_B]])
# Kaplan et al. 2020, Table 3 and Eq. 5.3 with Table 5.
PUBLISHED = np.array([0.077 * np.log(6.5e13), 0.077, 0.76 * np.log(2.1e3), 0.76])
PUBLISHED_LAW = (np.log(2.1e8), -1 / 0.21)


@pytest.mark.parametrize(
    ("params", "losses"),
    [(1e6, (4.38, 4.16, 4.07)), (1e7, (3.80, 3.56, 3.44)), (1e8, (3.37, 3.09, 2.94)), (1e9, (3.05, 2.74, 2.55))],
)
def test_published_law_at_fixed_steps(params: float, losses: tuple[float, ...]) -> None:
    """At 1e4, 1e4.5 and 1e5 steps of 2^19 tokens, from the law's own arithmetic."""
    found = kaplan.loss_at(PUBLISHED, PUBLISHED_LAW, 2.0**19, params, 10 ** np.array([4, 4.5, 5]))
    assert found == pytest.approx(np.array(losses), abs=0.006)


@pytest.mark.parametrize(
    ("pf_days", "best", "loss"), [(1e-5, 4.9e4, 5.56), (1e-3, 2.5e6, 4.11), (1e-1, 8.9e7, 3.11), (1.0, 4.9e8, 2.73)]
)
def test_published_law_at_fixed_compute(pf_days: float, best: float, loss: float) -> None:
    sizes = np.geomspace(1e3, 1e10, 4000)
    steps = pf_days * 8.64e19 / (6 * sizes * 2**19)
    found = kaplan.loss_at(PUBLISHED, PUBLISHED_LAW, 2.0**19, sizes, steps)
    assert sizes[found.argmin()] == pytest.approx(best, rel=0.02)
    assert found.min() == pytest.approx(loss, abs=0.006)


def test_planted_surface_comes_back() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}))
    found, theta = derive_surface(Samples(runs), make_sizes(runs, 2048.0), LAW, EVERYWHERE, 0.004, Warnings())
    for name in kaplan.NAMES:
        assert found.estimates[name].value == pytest.approx(getattr(TRUTH, name), rel=0.02), name
    assert found.estimates["alpha_C_min"].value == pytest.approx(TRUTH.alpha_C_min, rel=0.005)
    np.testing.assert_allclose(found.points["fitted"], found.points["loss"], rtol=2e-3)
    sizes = make_sizes(runs, 2048.0)
    slices = derive_slices(runs, sizes, None, 2048.0)
    lines = lines_of_slices(slices, sizes, theta[0], LAW[0], 2048.0)
    assert set(slices["axis"]) == {"steps"}
    for at, points in slices.groupby("at"):
        line = lines[lines["at"] == at]
        np.testing.assert_allclose(np.interp(points["params"], line["params"], line["loss"]), points["loss"], rtol=4e-3)


def test_replicates_without_a_law_are_left_out() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}, tokens=1e6))
    laws = np.array([LAW[0], [np.nan, np.nan], LAW[0]])
    samples = Samples(runs, 2, lambda i: np.tile(runs[i].ln_loss, (2, 1)))
    _, theta = derive_surface(samples, make_sizes(runs, 2048.0), laws, EVERYWHERE, 0.004, Warnings())
    assert np.isnan(theta[1]).all()
    np.testing.assert_allclose(theta[2], theta[0], rtol=1e-6)


def test_unusable_input_is_refused() -> None:
    n, s = np.repeat([1e4, 1e5, 1e6], 3), np.tile([1e2, 1e3, 1e4], 3)
    with pytest.raises(InputError, match="steps must be positive"):
        kaplan.fit_surface(n, np.r_[0.0, s[1:]], np.ones(9))
    with pytest.raises(InputError, match="2 model sizes"):
        kaplan.fit_surface(np.where(n == 1e6, 1e5, n), s, np.ones(9))


def _curves(sigma: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Params, S_min, loss and run of 24 runs of eight sizes with ten points each, from the planted law; the noise is a
    run's own and common to its points."""
    rng = np.random.default_rng(seed)
    params, steps = np.repeat(np.geomspace(3e3, 3e6, 8), 30), np.tile(np.geomspace(1e2, 1e4, 10), 24)
    run = np.repeat(np.arange(24), 10)
    loss = (TRUTH.N_c / params) ** TRUTH.alpha_N + (TRUTH.S_c / steps) ** TRUTH.alpha_S
    return params, steps, loss * np.exp(sigma * rng.standard_normal(24)[run]), run


@pytest.mark.parametrize("kind", ["squared", "huber", "absolute"])
def test_public_fit_gives_back_the_planted_law(kind: engine.Loss) -> None:
    params, steps, loss, run = _curves(0.0)
    found = kaplan.fit(params, steps, loss, run=run, kind=kind)
    for name in kaplan.NAMES:
        assert found.estimates[name].value == pytest.approx(getattr(TRUTH, name), rel=1e-4), name
    assert found.law == "kaplan-ns"
    assert found.span["params"] == (pytest.approx(3e3), pytest.approx(3e6))
    assert (found.estimates["N_c"].se is None) == (kind != "squared")


def test_bootstrap_draws_whole_runs() -> None:
    """Noise common to the points of a run: rows resampled one by one would give intervals a third as wide."""
    params, steps, loss, run = _curves(0.01)
    by_run = kaplan.fit(params, steps, loss, run=run, bootstrap=300, seed=1)
    by_row = kaplan.fit(params, steps, loss, bootstrap=300, seed=1)
    wide, narrow = (e.estimates["alpha_N"] for e in (by_run, by_row))
    assert wide.se is not None
    assert narrow.se is not None
    assert wide.se > 2 * narrow.se
    assert wide.low is not None
    assert wide.high is not None
    assert wide.low < TRUTH.alpha_N < wide.high
    again = kaplan.fit(params, steps, loss, run=run, bootstrap=300, seed=1)
    np.testing.assert_array_equal(again.draws["alpha_N"], by_run.draws["alpha_N"])
    assert by_run.draws["N_c"].shape == (300,)
    written = json.loads(json.dumps(by_run.to_json(), allow_nan=False))
    assert written["estimates"]["alpha_N"]["low"] == wide.low
    assert "24 runs" in written["interval"]


def test_errors_of_independent_points_are_those_of_scipy() -> None:
    params, steps, loss, _ = _curves(0.0)
    loss = loss * np.exp(0.01 * np.random.default_rng(3).standard_normal(len(loss)))
    found = kaplan.fit(params, steps, loss)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log((x[0] / params) ** x[1] * 1e8 ** x[1] + (x[2] / steps) ** x[3]) - np.log(loss)

    best = least_squares(residuals, [1.6, 0.07, 39.0, 0.78], x_scale=[1, 0.1, 10, 0.5], xtol=1e-14, ftol=1e-14)
    assert found.objective == pytest.approx(2 * best.cost, rel=1e-9)
    covariance = np.linalg.inv(best.jac.T @ best.jac) * 2 * best.cost / (len(loss) - 4)
    se = np.sqrt(np.diag(covariance)) * [1e8, 1, 1, 1]
    for name, value in zip(kaplan.NAMES, se, strict=True):
        assert found.estimates[name].se == pytest.approx(value, rel=1e-3), name


@settings(max_examples=6, deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e3))
def test_units_move_only_their_constant(of_params: float, of_steps: float) -> None:
    params, steps, loss, _ = _curves(0.01)
    one = kaplan.fit(params, steps, loss).estimates
    other = kaplan.fit(params * of_params, steps * of_steps, loss).estimates
    assert other["alpha_N"].value == pytest.approx(one["alpha_N"].value, rel=1e-6)
    assert other["alpha_S"].value == pytest.approx(one["alpha_S"].value, rel=1e-6)
    assert other["N_c"].value == pytest.approx(one["N_c"].value * of_params, rel=1e-4)
    assert other["S_c"].value == pytest.approx(one["S_c"].value * of_steps, rel=1e-4)


def test_conversions_at_and_far_from_the_critical_batch() -> None:
    b = kaplan.critical_batch(3.0, 2.1e8, 0.21)
    assert b == pytest.approx(1.12e6, rel=0.01)
    assert kaplan.steps_min(1000.0, b, b) == pytest.approx(500)
    assert kaplan.flops_min(1e18, b, b) == pytest.approx(5e17)
    assert kaplan.steps_min(1000.0, 1e4 * b, b) == pytest.approx(1000, rel=1e-3)
    assert kaplan.flops_min(1e18, 1e-4 * b, b) == pytest.approx(1e18, rel=1e-3)
    # C_min = 6 N B_crit S_min identically.
    steps, batch, params = 3e4, 2.0**19, 1e8
    least = kaplan.flops_min(6 * params * batch * steps, batch, b)
    assert least == pytest.approx(6 * params * b * kaplan.steps_min(steps, batch, b))


def test_fixed_steps_solve_the_law_they_came_from() -> None:
    law = (float(LAW[0, 0]), float(LAW[0, 1]))
    theta = np.array(
        [TRUTH.alpha_N * np.log(TRUTH.N_c), TRUTH.alpha_N, TRUTH.alpha_S * np.log(TRUTH.S_c), TRUTH.alpha_S]
    )
    loss = kaplan.loss_at(theta, law, 2048.0, 1e5, 3000.0)
    needed = kaplan.steps_min(3000.0, 2048.0, kaplan.critical_batch(loss, TRUTH.B_star, TRUTH.alpha_B))
    assert kaplan.predict(theta, 1e5, needed) == pytest.approx(float(loss), rel=1e-10)


def test_public_fit_refuses_what_does_not_determine_it() -> None:
    params, steps, loss, run = _curves(0.01)
    with pytest.raises(InputError, match=r"kaplan-ns: 2 distinct params do not determine the law; give at least 3"):
        kaplan.fit(np.where(params > 1e4, 1e5, 3e3), steps, loss)
    with pytest.raises(InputError, match=r"loss must be positive numbers; .* 1 rows \(the first is row 4, nan\)"):
        kaplan.fit(params, steps, np.where(np.arange(len(loss)) == 4, np.nan, loss))
    with pytest.raises(InputError, match="one length"):
        kaplan.fit(params[1:], steps, loss)
    with pytest.raises(InputError, match="1 distinct steps_min"):
        kaplan.fit(params, np.full_like(steps, 1e3), loss)
    few = run < 12  # four sizes of three runs
    found = kaplan.fit(params[few][::3], steps[few][::3], loss[few][::3], run=params[few][::3], bootstrap=20)
    codes = {w["code"] for w in found.warnings}
    assert {"few_runs", "redrawn"} <= codes
