"""The best of a few sizes, and minima of curves through them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from analysis.minima import akima_minima, find_optima, parabolas, per_token_at


def test_parabolas_by_hand() -> None:
    ln_n = np.log([1.0, 2, 4, 8, 16, 32])
    values = np.stack([0.1 * (ln_n - c) ** 2 + 2 for c in np.log([5.0, 1.2, 30.0])], axis=1)
    values[0, 0] = np.nan
    found = find_optima(ln_n, values)
    assert found.interior.tolist() == [True, False, False]
    assert found.used.tolist() == [True, False, False]
    assert np.exp(found.ln_n[0]) == pytest.approx(5)
    assert found.value[0] == pytest.approx(2)
    c0, c1, c2 = found.coefficients[0]
    np.testing.assert_allclose(c0 + c1 * ln_n + c2 * ln_n**2, 0.1 * (ln_n - np.log(5)) ** 2 + 2)
    assert (ln_n[found.first[0]], ln_n[found.last[0]]) == (np.log(2), np.log(16))


def test_a_small_size_that_ended_beaten_is_no_edge() -> None:
    ln_n = np.log([1.0, 2, 4, 8])
    values = np.array([[3.0, 2.9, np.nan], [3.1, 2.8, 2.5], [3.2, 3.0, 2.6], [3.4, 3.2, 2.7]])
    assert find_optima(ln_n, values).interior.tolist() == [False, True, True]
    values[0, 1] = 2.7  # now it ended ahead of all: the next one is only the smallest of those left
    assert find_optima(ln_n, values).interior.tolist() == [False, False, False]
    # Nor does it help that a still smaller one was beaten, when the last to end was not.
    five = np.vstack([[3.3, np.nan, np.nan], values])
    assert find_optima(np.log([0.5, 1, 2, 4, 8]), five).interior.tolist() == [True, True, False]


def test_a_parabola_needs_three_points() -> None:
    x = np.array([1.0, 2.0, 3.0, 9.0])
    y = np.array([3.0, 1.0, 3.0, 50.0])
    vertex, least, c = parabolas(x, y, np.array([True, True, True, False]))
    assert (vertex, least) == (pytest.approx(2), pytest.approx(1))
    np.testing.assert_allclose(c, [9, -8, 2])
    assert np.isnan(parabolas(x, y, np.array([True, True, False, False]))[0])
    assert np.isnan(parabolas(x, -y, np.array([True, True, True, False]))[0])  # a hill


def test_akima_minima_are_those_of_scipys_curve() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 6, 8))
    y = 0.1 * (x[:, None, None] - 3) ** 2 + 0.1 * rng.standard_normal((8, 20, 2))
    at, value = akima_minima(x, y)
    fine = np.linspace(x[0], x[-1], 20001)
    curve = Akima1DInterpolator(x, y, axis=0)(fine)
    assert (value <= curve.min(axis=0) + 1e-12).all()
    np.testing.assert_allclose(value, curve.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(at, fine[curve.argmin(axis=0)], atol=1e-3)
    assert akima_minima(x, -x) == (x[-1], -x[-1])


def test_flops_per_token_between_and_beyond_the_sizes() -> None:
    ln_n, ln_k = np.log([10.0, 100.0, 1000.0]), np.log([100.0, 700.0, 6000.0])
    at = np.log([100.0, np.sqrt(10) * 10, 1e4, 1.0])
    expected = [700.0, np.sqrt(100 * 700), 6000 * 6000 / 700, 100 * 100 / 700]
    np.testing.assert_allclose(np.exp(per_token_at(ln_n, ln_k, at)), expected)
    np.testing.assert_allclose(np.exp(per_token_at(ln_n[:1], ln_k[:1], np.log([20.0]))), [200])
