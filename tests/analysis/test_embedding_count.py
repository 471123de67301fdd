"""Kaplan's exponent from Hoffmann's law by counting without embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from analysis import embedding_count as count
from analysis import published as pub


def test_exponent_without_embeddings_is_kaplans_and_with_them_hoffmanns() -> None:
    """Over 768 to 1.5e9 parameters with Besiroglu's constants."""
    assert 0.77 <= count.fitted_exponent() <= 0.80
    assert 0.51 <= count.fitted_exponent("total") <= 0.52
    assert count.fitted_exponent("total") == pytest.approx(pub.REFIT.a, abs=1e-9)
    assert count.fitted_exponent(law=pub.APPROACH_3) == pytest.approx(pub.SIMULATED_EXPONENT["Hoffmann"], abs=0.02)


@pytest.mark.parametrize("counted", ["without_embeddings", "total"])
@pytest.mark.parametrize("params", [768.0, 1e6, 1.5e9])
def test_the_size_is_the_minimum_at_its_compute(params: float, counted: count.Counted) -> None:
    flops = float(count.optimal_compute(params, counted))

    def loss(ln_n: float) -> float:
        n = np.exp(ln_n)
        total = float(count.total_params(n))
        return float(pub.REFIT.loss(total, flops / (6 * (n if counted == "without_embeddings" else total))))

    middle = np.log(params)
    best = minimize_scalar(loss, bounds=(middle - 3, middle + 3), method="bounded", options={"xatol": 1e-8})
    assert np.exp(best.x) == pytest.approx(params, rel=1e-3)


def test_local_exponent_and_its_limits() -> None:
    law = pub.REFIT
    assert count.local_exponent(1e-6) == pytest.approx(law.beta / (law.alpha / 3 + law.beta), abs=1e-4)
    assert count.local_exponent(1e18) == pytest.approx(law.a, abs=1e-4)
    params = np.geomspace(1e3, 1e10, 2000)
    slope = np.gradient(np.log(params), np.log(count.optimal_compute(params)))
    np.testing.assert_allclose(count.local_exponent(params)[1:-1], slope[1:-1], atol=1e-4)


def test_omega_describes_table_a9() -> None:
    """Hoffmann's sizes include the embeddings: N without them, counted from the shapes, gives back the totals."""
    shapes = np.array([(512, 2048, 64, 8, 8), (1280, 5120, 128, 10, 21), (2560, 10240, 128, 20, 34),
                       (5120, 20480, 128, 40, 47)], dtype=float)  # fmt: skip
    width, feed, key, heads, layers = shapes.T
    without = layers * (4 * width * key * heads + 2 * width * feed)
    np.testing.assert_allclose(count.total_params(without), without + 32000 * width, rtol=0.06)
