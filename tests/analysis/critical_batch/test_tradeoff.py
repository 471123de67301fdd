"""S = S_min + E_min/B and the law over losses: exact data, many problems at once, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from analysis import critical_batch as cb

BATCHES = np.array([256.0, 512, 1024, 2048, 4096, 8192, 16384])


def test_bracketing_and_missing_batches() -> None:
    steps = np.log([150 + 7.5e5 / BATCHES, 150 + 1.5e4 / BATCHES, 150 + 7.5e6 / BATCHES, 150 + 7.5e5 / BATCHES])
    steps[3, 2:] = np.nan
    found = cb.fit_tradeoffs(BATCHES, steps)
    assert found.bracketed.tolist() == [True, False, False, False]
    assert found.batches.tolist() == [7, 7, 7, 2]
    assert found.converged.tolist() == [True, True, True, False]
    assert np.isnan(found.ln_s[3])
    np.testing.assert_allclose(np.exp(found.ln_b[:3]), [5000, 100, 50000], rtol=1e-6)
    # A batch that did not reach the target does not take part, and B_crit must lie among the others.
    steps[0, :5] = np.nan
    assert not cb.fit_tradeoffs(BATCHES, steps).bracketed[0]


def test_parameters_stay_positive_where_the_line_would_not() -> None:
    """Steps that fall faster than 1/B: the linear intercept is negative, S_min is not."""
    steps = 1e6 / BATCHES**1.1
    assert np.polyfit(1 / BATCHES, steps, 1)[1] < 0
    found = cb.fit_tradeoffs(BATCHES, np.log(steps)[None])
    assert 0 <= np.exp(found.ln_s[0]) < 0.01 * steps.min()
    assert np.exp(found.ln_e[0]) == pytest.approx(np.exp(np.mean(np.log(steps * BATCHES))), rel=0.01)


def test_interval_of_alpha_is_open_where_the_slope_may_vanish() -> None:
    slopes = np.array([-2.0, *np.linspace(-5, 1, 101)])
    found = cb.law_estimates(np.column_stack([np.full(102, 10.0), slopes]))
    assert found["alpha_B"].value == pytest.approx(0.5)
    assert found["alpha_B"].low == pytest.approx(1 / 4.754)
    assert found["alpha_B"].high is None


def test_overhead_is_that_of_the_fitted_steps() -> None:
    """Zhang et al. 2024: at the batch, the steps are 1.2 times those that linear scaling from B_opt would take."""
    s_min, b_crit, optimal = 150.0, 5000.0, 256.0
    batch = cb.overhead_batch(b_crit, optimal)
    steps, at_optimal = (s_min * (1 + b_crit / b) for b in (batch, optimal))
    assert steps == pytest.approx(1.2 * at_optimal * optimal / batch)


def test_many_noisy_problems_are_as_low_as_scipy_finds_them() -> None:
    rng = np.random.default_rng(0)
    b_crit = np.exp(rng.uniform(np.log(300), np.log(1e5), 40))
    y = np.log(150 * (1 + b_crit[:, None] / BATCHES)) + 0.1 * rng.normal(size=(40, 7))
    y[rng.random(y.shape) < 0.2] = np.nan
    found = cb.fit_tradeoffs(BATCHES, y)
    for k in np.flatnonzero(found.batches >= cb.LEAST_BATCHES):
        seen = np.isfinite(y[k])

        def left(theta: np.ndarray, k: int = k, seen: np.ndarray = seen) -> np.ndarray:
            return (y[k] - np.logaddexp(theta[0], theta[1] - np.log(BATCHES)))[seen]

        tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
        best = min(least_squares(left, [4.0, 4.0 + start], **tight).cost for start in (5, 9, 12))
        squares = found.variance[k] * max(found.batches[k] - 2, 1)
        assert squares <= 2 * best * (1 + 1e-9)
        np.testing.assert_allclose((left(np.array([found.ln_s[k], found.ln_e[k]])) ** 2).sum(), squares)
    assert found.converged[found.batches >= cb.LEAST_BATCHES].all()
