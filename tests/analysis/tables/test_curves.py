"""Smoothing and crossings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from analysis.tables.curves import smooth, smooth_runs, smooth_versions


def law(x: np.ndarray) -> np.ndarray:
    """A smooth decreasing ln(loss) of ln(tokens)."""
    return np.log(1.5 + 40 * np.exp(-0.4 * x))


def test_a_noiseless_curve_is_kept_and_crossed_between_its_points() -> None:
    x = np.linspace(9, 16, 30)
    curve = smooth(x, law(x))
    np.testing.assert_allclose(curve.ln_loss(x), law(x), atol=1e-12)
    at = np.array([10.13, 12.5, 15.9])
    np.testing.assert_allclose(curve.ln_tokens(law(at)), at, atol=2e-3)


def test_it_never_increases_and_does_not_flatter_noise() -> None:
    """A running minimum lies below the truth by about the noise; the isotonic fit does not."""
    x = np.linspace(9, 16, 200)
    fitted, running = [], []
    for seed in range(20):
        y = law(x) + 0.02 * np.random.default_rng(seed).normal(size=200)
        curve = smooth(x, y)
        assert (np.diff(curve.y) <= 1e-12).all()
        middle = slice(60, 180)
        fitted.append((curve.ln_loss(x) - law(x))[middle].mean())
        running.append((np.minimum.accumulate(y) - law(x))[middle].mean())
    assert abs(np.mean(fitted)) < 0.001
    assert np.mean(running) < -0.01


def test_nothing_is_extrapolated() -> None:
    x = np.linspace(9, 16, 30)
    curve = smooth(x, law(x), start=10.0)
    assert np.isnan(curve.ln_loss(np.array([9.5, 16.1]))).all()
    never, before, warm = curve.ln_tokens(np.array([law(np.array(16.2)), law(np.array(8.9)), law(np.array(9.5))]))
    assert np.isnan(never)
    assert before == -np.inf
    assert 9.4 < warm < 9.6 < curve.start


def test_a_flat_end_reaches_to_the_last_evaluation() -> None:
    x = np.array([9.0, 10, 11, 12, 13])
    curve = smooth(x, np.array([2.0, 1.5, 1.0, 0.9, 1.1]))
    assert curve.end == 13
    assert curve.ln_loss(np.array([13.0]))[0] == pytest.approx(1.0)


def test_one_evaluation_and_the_continuation_for_simulation() -> None:
    assert smooth(np.array([9.0]), np.array([1.0])).ln_loss(np.array([9.0]))[0] == 1.0
    x = np.linspace(9, 16, 15)
    curve = smooth(x, 3 - 0.1 * x)
    assert curve.extended(np.array([17.0]))[0] == pytest.approx(1.3)
    assert curve.slope(np.array([12.0]))[0] == pytest.approx(-0.1)


def scipy_curve(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots and their cubic by scipy's own regression and interpolation."""
    fitted = isotonic_regression(y, increasing=False)
    size = np.diff(fitted.blocks)
    knots = np.add.reduceat(x, fitted.blocks[:-1]) / size
    levels = fitted.x[fitted.blocks[:-1]]
    if size[0] > 1:
        knots, levels = np.append(x[0], knots), np.append(levels[0], levels)
    if size[-1] > 1:
        knots, levels = np.append(knots, x[-1]), np.append(levels, levels[-1])
    return knots, levels


def test_many_curves_at_once_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x = [np.sort(rng.uniform(9, 16, n)) for n in rng.integers(1, 60, 300)]
    y = [
        law(at) + sigma * rng.normal(size=len(at)) for at, sigma in zip(x, rng.choice([0, 1e-3, 0.3], 300), strict=True)
    ]
    x[0], y[0] = np.array([9.0, 10, 11]), np.array([1.0, 2, 3])  # one level
    x[1], y[1] = np.array([9.0, 10]), np.array([2.0, 1])
    curves = smooth_runs(x, y, np.full(300, 9.5))
    for curve, at, values in zip(curves, x, y, strict=True):
        knots, levels = scipy_curve(at, values)
        np.testing.assert_allclose(curve.x[::6], knots, rtol=0, atol=1e-12)
        expected = PchipInterpolator(knots, levels)(curve.x) if len(knots) > 2 else np.interp(curve.x, knots, levels)
        np.testing.assert_allclose(curve.y, expected, rtol=0, atol=1e-12)
        assert curve.start == max(9.5, at[0])
    assert smooth_runs([], [], np.array([])) == []


def test_versions_of_a_curve_are_read_as_each_of_them() -> None:
    x = np.linspace(9, 16, 25)
    y = law(x) + np.array([0.0, 0.01, 0.1])[:, None] * np.random.default_rng(1).normal(size=(3, 25))
    found = smooth_versions(x, y, start=10.0)
    each = [smooth(x, row, 10.0) for row in y]
    at, losses = np.array([8.0, 9.7, 12.3, 16.0, 17.0]), np.linspace(0.3, 1.1, 9)
    np.testing.assert_allclose(found.ln_loss(at), [curve.ln_loss(at) for curve in each], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.ln_tokens(losses), [curve.ln_tokens(losses) for curve in each], atol=1e-10)
    assert found.end == 16.0
    np.testing.assert_array_equal(found[1].y, each[1].y)
