"""Planted patterns are found and named; noise is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis.outcome import Outcome
from analysis.uncertainty.residuals import FAR, Residuals, residuals, residuals_of

N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e11, 8)))
QUANTITIES = {"params": N, "tokens": D, "flops": 6 * N * D}
X, Y = np.log(N / 3e7), np.log(D / 3e9)
NOISE = 0.003 * np.random.default_rng(1).standard_normal(len(N))


def of(pattern: np.ndarray, sigma: float | None = 0.003) -> Residuals:
    return residuals(NOISE + pattern, QUANTITIES, sigma=sigma)


def test_noise_has_no_findings() -> None:
    found = of(np.zeros(len(N)))
    assert found.findings == []
    assert found.ratio == pytest.approx(1, rel=0.2)
    assert found.rms == pytest.approx(NOISE.std(), rel=0.1)
    assert found.largest == NOISE[found.largest_row]
    assert found.pairs == 0
    assert np.isnan(found.autocorrelation)
    assert len(found.regions) == 9
    for trend in found.trends.values():
        assert abs(trend.slope) < 4 * trend.slope_se


def test_false_alarms_are_rare() -> None:
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(200):
        run = np.repeat(np.arange(rng.integers(6, 30)), rng.integers(1, 6))
        n, d = np.exp(rng.uniform(10, 15, run.max() + 1))[run], np.exp(rng.uniform(15, 20, len(run)))
        r = rng.standard_normal(len(run)) + 0.5 * rng.standard_normal(len(run))[run]
        alarms += bool(residuals(r, {"params": n, "tokens": d, "flops": 6 * n * d}, run=run, sigma=1.2).findings)
    assert alarms <= 10  # each has a dozen tests at 1e-3


def test_a_slope_is_found_with_its_size() -> None:
    found = of(0.004 * X)
    trend = found.trends["params"]
    assert trend.slope == pytest.approx(0.004, abs=4 * trend.slope_se)
    assert any(text.startswith("residuals rise with N: +0.00") for text in found.findings)
    assert not any("with D" in text for text in found.findings)
    low, _, high = found.regions[found.regions["quantity"] == "params"]["mean"]
    assert low < -0.005 < 0.005 < high


def test_a_bend_is_found_where_there_is_no_slope() -> None:
    found = of(0.002 * (Y**2 - (Y**2).mean()))
    assert abs(found.trends["tokens"].slope) < 4 * found.trends["tokens"].slope_se
    assert any("bend with D" in text and "the ends than in the middle" in text for text in found.findings)


def test_signs_that_cluster_are_found() -> None:
    found = of(0.008 * np.sign(np.sin(3 * np.log(N * D))))
    trend = found.trends["flops"]
    assert trend.runs < trend.expected_runs - 3 * trend.runs_sd
    assert any("cluster along C" in text for text in found.findings)


def test_points_of_one_run_are_not_independent() -> None:
    run = np.repeat(np.arange(16), 4)
    shared = 0.003 * np.random.default_rng(5).standard_normal(16)[run]
    order = np.argsort(run)  # eight sizes, two runs of each, of four points
    found = residuals(shared + 0.1 * NOISE, {"params": np.sort(N), "tokens": np.tile(np.geomspace(1e9, 8e9, 4), 16)},
                      run=run[order])  # fmt: skip
    assert found.runs == 16
    assert found.pairs == 48
    assert found.autocorrelation > 0.9
    alone = residuals(shared + 0.1 * NOISE, {"params": np.sort(N)})
    assert found.trends["params"].slope_se > 1.5 * alone.trends["params"].slope_se


def test_noise_far_above_the_seeds_and_points_far_off_are_named() -> None:
    r = NOISE.copy()
    r[[3, 40]] = 0.08, -0.12
    found = residuals(r, QUANTITIES, sigma=0.001)
    assert found.far.tolist() == [3, 40]
    assert found.largest_row == 40
    assert f"2 points lie more than {FAR:g} robust standard deviations off" in found.findings[-1]
    assert f"-12.0% at N {N[40]:.3g}, D {D[40]:.3g}" in found.findings[-1]
    assert found.ratio == pytest.approx(found.rms / 0.001)


def test_json_is_plain_and_constant_quantities_are_passed_over() -> None:
    found = residuals(NOISE, {"params": N, "tokens": np.full(len(N), 1e9)})
    assert set(found.trends) == {"params"}
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["ratio"] is None
    assert data["trends"]["params"]["quantity"] == "params"


def test_of_an_outcome() -> None:
    points = pd.DataFrame({"params": N, "tokens": D, "residual": NOISE, "run": np.repeat(np.arange(16), 4)})
    found = residuals_of(Outcome("parametric", {}, len(N), frames={"points": points}))
    assert found is not None
    assert (found.points, found.runs, found.pairs) == (64, 16, 48)
    assert residuals_of(Outcome("isoflop", {}, 9)) is None


def test_rounding_has_no_pattern() -> None:
    x = np.geomspace(1, 1e4, 60)
    assert not residuals(1e-15 * np.log(x), {"params": x}).findings
