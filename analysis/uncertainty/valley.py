"""A smooth valley ln L(N, C), what losses are simulated around for the intervals of optimal sizes.

The minimum over a few sizes, each with its noise, is neither smooth nor unbiased, so noise is never added to the
measured points themselves (their minimum is low by noise already). It is added to

    ln L = l(C) + u (t1 + t2 z + t3 z^2) + u^2 (q1 + q2 z) + q3 u^3

with u = ln N less the line of ln N_opt, z = ln C, centred and scaled, and l free at each C, fitted to the sizes around
each minimum. Of the terms t3, q2 and q3 those are taken that lower Akaike's criterion (with Hurvich & Tsai's correction
for few points). The valley's own minimum is what the procedure would find without noise on a dense grid of sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

NEAR = 3  # sizes on either side of the lowest one that the valley is fitted to: one more than a parabola takes in
_OPTIONAL = 3  # terms beyond t1, t2 and q1


@dataclass(frozen=True)
class Valley:
    """ln L along ln N at each of G compute values. centre, level, low, high: [G]; centre: ln N from which u counts;
    low, high: ends of the fitted u, beyond which the valley goes on straight. slope, bend: [G] of u and u^2; skew: of
    u^3. residual: [G, S], nan where a size was not fitted. sigma: noise of one unweighted ln L; freedom: the degrees of
    freedom behind it."""

    centre: np.ndarray
    level: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    skew: float
    low: np.ndarray
    high: np.ndarray
    residual: np.ndarray
    sigma: float
    freedom: int

    def at(self, ln_n: np.ndarray) -> np.ndarray:
        """ln L at ln N [G, ...]."""
        shape = (-1,) + (1,) * (ln_n.ndim - 1)
        centre, level, b, c, low, high = (
            v.reshape(shape) for v in (self.centre, self.level, self.slope, self.bend, self.low, self.high)
        )
        u = ln_n - centre
        inside = np.clip(u, np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0))
        value = level + inside * (b + inside * (c + inside * self.skew))
        return value + (u - inside) * (b + inside * (2 * c + 3 * inside * self.skew))

    def minimum(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ln N, ln L and half the second derivative [G] at the minimum, nan where there is none within low and high."""
        root = self.bend**2 - 3 * self.skew * self.slope
        with np.errstate(invalid="ignore", divide="ignore"):
            u = -self.slope / (self.bend + np.sqrt(root))
            good = (u > self.low) & (u < self.high)  # false for nan
        u = np.where(good, u, np.nan)
        value = self.level + u * (self.slope + u * (self.bend + u * self.skew))
        return self.centre + u, value, self.bend + 3 * u * self.skew


def fit_valley(
    ln_c: np.ndarray,
    x: np.ndarray,
    ln_l: np.ndarray,
    weight: np.ndarray,
    line: tuple[float, float],
    independent: float = 1.0,
) -> Valley | None:
    """ln_c: [G]. x, ln_l, weight: [G, S], ln N, ln L and the number of losses behind it (0: not taken in). line:
    (intercept, slope) of ln N_opt against ln C. independent: the share of compute values whose noise is not that of
    their neighbours. None where the points do not determine the valley."""
    z = (ln_c - ln_c.mean()) / max(float(np.ptp(ln_c)), 1e-9)
    centre = line[0] + line[1] * ln_c
    g, s = np.nonzero(weight)
    u, y, w = x[g, s] - centre[g], ln_l[g, s], weight[g, s]
    terms = np.stack([u, u * z[g], u**2, u * z[g] ** 2, u**2 * z[g], u**3], axis=1)
    total = np.maximum(np.bincount(g, w, len(ln_c)), 1e-300)

    def centred(values: np.ndarray) -> np.ndarray:
        """What is left of them when each compute value has a level of its own."""
        return values - (np.bincount(g, w * values, len(ln_c)) / total)[g]

    root = np.sqrt(w)
    design = np.stack([root * centred(column) for column in terms.T], axis=1)
    target = root * centred(y)
    best: tuple[float, np.ndarray] | None = None
    sigma, freedom = 0.0, 0
    for optional in (c for k in range(_OPTIONAL + 1) for c in combinations(range(3, 3 + _OPTIONAL), k)):
        chosen = [0, 1, 2, *optional]
        theta, _, rank, _ = np.linalg.lstsq(design[:, chosen], target, rcond=None)
        free = len(chosen) + len(ln_c)
        if rank < len(chosen) or (optional and len(y) - free < 2):
            continue
        square = float(((target - design[:, chosen] @ theta) ** 2).sum())
        score = _criterion(square / len(y), independent * len(y), len(chosen) + independent * len(ln_c))
        if best is None or score < best[0]:
            full = np.zeros(3 + _OPTIONAL)
            full[chosen] = theta
            best = score, full
        # That of the fullest model: the chosen one's is low for having been chosen.
        if len(y) > free:
            sigma, freedom = float(np.sqrt(square / (len(y) - free))), len(y) - free
    if best is None:
        return None
    _, theta = best
    fitted = terms @ theta
    level = np.where(
        np.bincount(g, minlength=len(ln_c)) > 0, np.bincount(g, w * (y - fitted), len(ln_c)) / total, np.nan
    )
    residual = np.full(x.shape, np.nan)
    residual[g, s] = y - level[g] - fitted
    low, high = np.full(len(ln_c), np.inf), np.full(len(ln_c), -np.inf)
    np.minimum.at(low, g, u)
    np.maximum.at(high, g, u)
    slope, bend = theta[0] + theta[1] * z + theta[3] * z**2, theta[2] + theta[4] * z
    return Valley(centre, level, slope, bend, float(theta[5]), low, high, residual, sigma, freedom)


def _criterion(variance: float, points: float, free: float) -> float:
    """Akaike's, corrected for few points (Hurvich & Tsai 1989)."""
    return points * float(np.log(max(variance, 1e-300))) + 2 * free * points / max(points - free - 1, 0.5)
