"""Curves of the sizes of any table, and the noise they carry."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.frontier.curves import by_size, read_runs, smoothed
from analysis.frontier.noise import CurveNoise, draw_noise, estimate_noise
from analysis.outcome import Warnings


def test_a_dense_curve_is_averaged_over_ten_evaluations_and_keeps_its_ends() -> None:
    x = np.linspace(10, 12, 300)
    line = 3 - 0.2 * x
    kept_x, kept = smoothed(x, line)
    np.testing.assert_allclose(kept, 3 - 0.2 * kept_x, atol=1e-12)
    noise = np.random.default_rng(0).standard_normal(300)
    left = smoothed(x, line + 0.01 * noise)[1] - (3 - 0.2 * kept_x)
    assert left[5:-5].std() == pytest.approx(0.01 * 0.335, rel=0.2)  # sqrt of the sum of squared weights


def test_a_sparse_curve_does_not_rise() -> None:
    x = np.linspace(10, 12, 20)
    _, kept = smoothed(x, 3 - 0.2 * x + 0.05 * np.random.default_rng(0).standard_normal(20))
    assert (np.diff(kept) <= 1e-12).all()


def test_runs_of_one_size_give_their_lowest_and_c_min_shrinks_with_the_batch() -> None:
    tokens = np.tile(np.geomspace(1e3, 1e6, 12), 2)
    columns = {"params": np.full(24, 100.0), "tokens": tokens, "flops": 600 * tokens}
    columns |= {"loss": np.repeat([1.0, 1.1], 12) * tokens**-0.1, "batch_tokens": np.repeat([64.0, 640.0], 12)}
    warnings = Warnings()
    runs = read_runs(columns, np.repeat(["b", "a"], 12), np.repeat([0.0, 2e3], 12), warnings)
    assert [run.batch for run in runs] == [640, 64]  # by label
    assert warnings[0]["message"] == "2 points inside the warm-up of their run are left out"
    (size,) = by_size(runs, None)
    x, y = size.lowest()
    np.testing.assert_allclose(y, -0.1 * (x - np.log(600)), atol=1e-9)
    law = np.log(1e4), -2.0
    (least,) = by_size(runs, law)
    for (c_min, _), run in zip(least.runs, runs, strict=True):
        b_crit = 1e4 * np.exp(run.ln_loss) ** -2
        np.testing.assert_allclose(np.exp(c_min), 600 * np.exp(run.ln_tokens) / (1 + run.batch / b_crit))


def test_noise_comes_back_from_the_scatter_of_sizes() -> None:
    grid = np.arange(30) * 0.19 + 40
    u = np.linspace(-1, 1, 8)[:, None] + 0.0 * grid
    valley = 1 - 0.05 * grid + 0.02 * u**2 + 0.003 * u**3
    rng = np.random.default_rng(0)
    known = CurveNoise(np.array([0.004]), np.array([1.0]), np.array([1.0]), 10)
    shocks = draw_noise(grid, 8, known, np.ones(60), rng)
    assert shocks.std() == pytest.approx(0.004, rel=0.05)
    step = np.corrcoef(shocks[:, :, :-1].ravel(), shocks[:, :, 1:].ravel())[0, 1]
    assert step == pytest.approx(np.exp(-0.19), abs=0.02)
    found = [estimate_noise(grid, u, valley + shock, np.ones(u.shape, bool)) for shock in shocks]
    assert all(one is not None and one.freedom > 50 for one in found)
    likely = [(one.sigma[one.share.argmax()], one.correlation[one.share.argmax()]) for one in found if one]
    assert np.mean([sigma for sigma, _ in likely]) == pytest.approx(0.004, rel=0.1)
    assert np.median([correlation for _, correlation in likely]) in (0.6, 1.0, 1.5)
    assert estimate_noise(grid, u[:2], valley[:2], np.ones((2, 30), bool)) is not None
    assert estimate_noise(grid[:2], u[:2, :2], valley[:2, :2], np.ones((2, 2), bool)) is None
