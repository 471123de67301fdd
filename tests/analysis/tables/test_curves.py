"""Smoothing and crossings."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.tables.curves import smooth


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
