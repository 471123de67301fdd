"""Intervals: simulated sweeps with the estimated noise, the whole chain of laws refitted on each.

A replicate takes every run's smoothed curve as the truth and adds to ln(loss)
- seed noise: Gaussian, with the standard deviation between seeds and its correlation along the run. Where that
deviation
  was itself estimated from few repeats, it is redrawn for each replicate (scaled inverse chi-square), so that intervals
  are not too narrow for knowing it badly;
- tuning scatter: all runs of one size and batch need a common factor more or fewer tokens, as when a learning-rate rule
  suits some cells better than others (`analysis.critical_batch.tuning_scatter` says how much).
Without the second, intervals covered the planted exponents in only half of the sweeps simulated with 12% scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.outcome import LEVEL, Estimate
from analysis.tables.runs import Run, SeedNoise


def estimate(samples: np.ndarray, level: float = LEVEL) -> Estimate:
    """From samples [1 + replicates], the first of which is the point estimate. Replicates that failed (nan) are left
    out; when they are more than half, no interval is given."""
    value, replicates = float(samples[0]), samples[1:]
    good = replicates[np.isfinite(replicates)]
    if len(good) < 2 or len(good) < len(replicates) / 2:
        return Estimate(value)
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(good.std(ddof=1)), float(low), float(high))


def band(samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise interval [n], [n] of samples [1 + replicates, n]; nan where fewer than half of the replicates hold."""
    replicates = samples[1:]
    count = np.isfinite(replicates).sum(axis=0)
    known = (count >= 2) & (count >= len(replicates) / 2)
    out = np.full((2, samples.shape[1]), np.nan)
    if known.any():
        out[:, known] = np.nanquantile(replicates[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return out[0], out[1]


def correlated_noise(
    ln_tokens: np.ndarray, correlation: float, rng: np.random.Generator, number: int = 1
) -> np.ndarray:
    """Unit Gaussian noise [number, n] at increasing `ln_tokens`, correlated as exp(-distance / correlation)."""
    rho = np.exp(-np.diff(ln_tokens) / correlation)
    noise = rng.standard_normal((number, len(ln_tokens)))
    for i in range(1, len(ln_tokens)):
        noise[:, i] = rho[i - 1] * noise[:, i - 1] + math.sqrt(1 - rho[i - 1] ** 2) * noise[:, i]
    return noise


def simulate(
    runs: Sequence[Run], noise: SeedNoise, tuning: float, replicates: int, rng: np.random.Generator
) -> list[list[Run]]:
    """[1 + replicates] versions of the runs; the first holds the runs as they are. tuning: SD of ln(tokens) to a loss
    between cells (a cell is one size at one batch)."""
    sigma = np.full(replicates, noise.sigma)
    if noise.freedom >= 2:
        sigma = sigma * np.sqrt(noise.freedom / rng.chisquare(noise.freedom, replicates))
        # With two degrees of freedom the variance of these draws is infinite; a factor of four is doubt enough.
        sigma = np.minimum(sigma, 4 * noise.sigma)
    cells = {cell: tuning * rng.standard_normal(replicates) for cell in dict.fromkeys((r.group, r.batch) for r in runs)}
    samples: list[list[Run]] = [list(runs), *([] for _ in range(replicates))]
    for run in runs:
        shocks = correlated_noise(run.ln_tokens, noise.correlation, rng, replicates) * sigma[:, None]
        centre = run.curve.extended(run.ln_tokens - cells[run.group, run.batch][:, None])
        for sample, ln_loss in zip(samples[1:], centre + shocks, strict=True):
            sample.append(run.with_loss(ln_loss))
    return samples
