"""Estimates from samples, and the noise of simulated sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.outcome import Estimate
from analysis.tables.runs import SeedNoise, extract
from analysis.uncertainty import bootstrap
from analysis.uncertainty.bootstrap import band, correlated_noise, estimate, simulate
from analysis.uncertainty.simulate import synthetic_sweep


def test_estimate_is_the_first_sample_with_percentiles_of_the_rest() -> None:
    samples = np.concatenate([[7.0], np.arange(101.0)])
    found = estimate(samples)
    assert (found.value, found.low, found.high) == pytest.approx((7.0, 4.1, 95.9))
    assert found.se == pytest.approx(np.arange(101).std(ddof=1))
    assert estimate(np.array([3.0])) == Estimate(3.0)
    assert estimate(np.array([3.0, np.nan, np.nan, np.nan, 1.0, 2.0])) == Estimate(3.0)
    assert Estimate(1.0, float("inf"), None, 2.0).to_json() == {"value": 1.0, "se": None, "low": None, "high": 2.0}


def test_band_needs_half_of_the_replicates() -> None:
    samples = np.array([[0.0, 0.0], [1.0, np.nan], [2.0, np.nan], [3.0, 1.0]])
    low, high = band(samples)
    assert 1.0 <= low[0] < high[0] <= 3.0
    assert np.isnan([low[1], high[1]]).all()


def test_noise_has_unit_variance_and_the_asked_correlation() -> None:
    x = np.array([0.0, 0.5, 2.0])
    noise = correlated_noise(x, 1.5, np.random.default_rng(0), 40_000)
    expected = np.exp(-np.abs(x[:, None] - x) / 1.5)
    np.testing.assert_allclose(np.cov(noise.T), expected, atol=0.03)


def test_replicates_scatter_as_the_noise_says() -> None:
    runs = extract(
        synthetic_sweep(cells={(2, 16): (16,), (2, 32): (16,)}, seeds={(2, 16, 16): 2}, sigma=0.0, tokens=1e6)
    )
    rng = np.random.default_rng(0)
    plain = simulate(runs, SeedNoise(0.01, 1.0, 0), 0.0, 300, rng)
    assert plain[0] == runs
    assert len(plain) == 301
    final = np.array([[run.ln_loss[-1] for run in sample] for sample in plain[1:]])
    np.testing.assert_allclose(final.std(axis=0), 0.01, rtol=0.15)
    assert abs(np.corrcoef(final[:, 0], final[:, 1])[0, 1]) < 0.2
    # A noise known from few repeats widens the replicates.
    few = simulate(runs, SeedNoise(0.01, 1.0, 4), 0.0, 300, rng)
    assert np.std([sample[0].ln_loss[-1] for sample in few[1:]]) > 0.0115


def test_tuning_scatter_shifts_all_runs_of_a_cell_together() -> None:
    runs = extract(
        synthetic_sweep(cells={(2, 16): (16,), (2, 32): (16,)}, seeds={(2, 16, 16): 2}, sigma=0.0, tokens=1e6)
    )
    samples = simulate(runs, SeedNoise(1e-9, 1.0, 0), 0.1, 200, np.random.default_rng(0))
    target = np.array([np.log(2.6)])
    ln_tokens = np.array([[float(run.curve.ln_tokens(target)[0]) for run in sample] for sample in samples[1:]])
    np.testing.assert_allclose(ln_tokens.std(axis=0), 0.1, rtol=0.15)
    np.testing.assert_allclose(ln_tokens[:, 0], ln_tokens[:, 1], atol=1e-6)
    assert abs(np.corrcoef(ln_tokens[:, 0], ln_tokens[:, 2])[0, 1]) < 0.2


def test_what_was_forgotten_is_simulated_again_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = extract(synthetic_sweep(cells={(2, 16): (16,), (2, 32): (16,)}, seeds={(2, 16, 16): 2}, tokens=1e6))
    kept = simulate(runs, SeedNoise(0.01, 1.0, 0), 0.1, 7, np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, "_HELD", 0)
    forgetful = simulate(runs, SeedNoise(0.01, 1.0, 0), 0.1, 7, np.random.default_rng(0))
    for _ in range(2):
        for i, run in enumerate(runs):
            np.testing.assert_array_equal(forgetful.curves(i).y, kept.curves(i).y)
            np.testing.assert_array_equal(forgetful.curves(i)[0].y, run.curve.y)
            np.testing.assert_array_equal(forgetful.last(i), kept.ln_loss(i)[:, -1])
    assert [run.curve.y[-1] for run in kept[3]] == [kept.curves(i)[3].y[-1] for i in range(len(runs))]
    with pytest.raises(IndexError):
        kept[8]
