"""The noise of smoothed curves, from how sizes scatter about a smooth valley.

What two runs of one size would differ by is smooth along a curve, so a table of single runs shows it only between
sizes: as residuals about the valley of ln L over ln N, equal compute values apart, correlated along each curve as
exp(-distance in ln C / correlation). Both constants by restricted likelihood, in which the free level at each compute
and the valley's terms do not pass for noise that they have absorbed. The readings say little about the correlation, so
it is drawn for each simulation, by its likelihood, and the standard deviation that belongs to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, qr

_SPACING = 0.4  # in ln C of the readings: nearer ones tell of the smoothing, not of the noise
_MOST = 600  # readings
_CORRELATIONS = np.array([0.3, 0.6, 1.0, 1.5, 2.5, 4.0])  # in ln C


@dataclass(frozen=True)
class CurveNoise:
    """Standard deviation of ln L [m] for each correlation length in ln C [m], how likely these are [m], and the degrees
    of freedom behind it."""

    sigma: np.ndarray
    correlation: np.ndarray
    share: np.ndarray
    freedom: int


def estimate_noise(grid: np.ndarray, u: np.ndarray, ln_l: np.ndarray, take: np.ndarray) -> CurveNoise | None:
    """grid: ln C [g], evenly spaced. u: ln N less the line of the optimum [sizes, g]. ln_l, take: [sizes, g], ln L and
    whether it is in the valley. None where the readings do not exceed the unknowns by two."""
    every = max(1, round(_SPACING / float(np.diff(grid).mean()))) if len(grid) > 1 else 1
    columns = np.arange(len(grid)) % every == 0
    # Of very many sizes some are enough, and the likelihood costs the cube of the readings.
    rows = np.arange(len(take)) % max(1, -(-int((take & columns).sum()) // _MOST)) == 0
    take = take & columns & rows[:, None]
    take &= take.sum(axis=0) > 1
    size, g = np.nonzero(take)
    if not len(g):
        return None
    x, c = u[size, g], (grid[g] - grid.mean()) / max(float(np.ptp(grid)), 1e-9)
    level = (g[:, None] == np.unique(g)).astype(float)
    design = np.column_stack([level, x, x * c, x**2, x**2 * c, x**3])
    triangle = qr(design, mode="r", pivoting=True)[0]
    rank = int((np.abs(np.diag(triangle)) > 1e-9 * abs(triangle[0, 0])).sum())
    freedom = len(g) - rank
    if freedom < 2:
        return None
    basis = np.linalg.svd(design, full_matrices=False)[0][:, :rank]
    same, apart = size[:, None] == size, np.abs(grid[g][:, None] - grid[g])
    y = ln_l[size, g]
    sigma, score = np.zeros(len(_CORRELATIONS)), np.zeros(len(_CORRELATIONS))
    for k, correlation in enumerate(_CORRELATIONS):
        factor = cho_factor(np.where(same, np.exp(-apart / correlation), 0.0) + 1e-9 * np.eye(len(g)), lower=True)
        inner = basis.T @ cho_solve(factor, basis)
        off = y - basis @ np.linalg.solve(inner, basis.T @ cho_solve(factor, y))
        square = max(float(off @ cho_solve(factor, off)), 1e-300)
        half = float(np.log(np.diag(factor[0])).sum()) + 0.5 * float(np.linalg.slogdet(inner)[1])
        sigma[k], score[k] = math.sqrt(square / freedom), half + 0.5 * freedom * math.log(square / freedom)
    share = np.exp(score.min() - score)
    return CurveNoise(sigma, _CORRELATIONS, share / share.sum(), freedom)


def draw_noise(
    grid: np.ndarray, sizes: int, noise: CurveNoise, scale: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[replicates, sizes, g] of the noise, times `scale` [replicates]."""
    apart = np.abs(grid[:, None] - grid)
    which = rng.choice(len(noise.share), len(scale), p=noise.share)
    shocks = rng.standard_normal((len(scale), sizes, len(grid)))
    for k in np.unique(which):
        root = np.linalg.cholesky(np.exp(-apart / noise.correlation[k]) + 1e-9 * np.eye(len(grid)))
        shocks[which == k] = noise.sigma[k] * (shocks[which == k] @ root.T)
    return shocks * scale[:, None, None]
