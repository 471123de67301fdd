"""The trade-off S = S_min + E_min/B at one model and target loss, and the law of B_crit over losses.

The fit is on ln S, and B_crit = E_min/S_min tokens (Kaplan et al. 2020, Eq. 5.1 to 5.4). The law is B_crit = B_star /
L^(1/alpha_B) (Eq. 5.3), a weighted line in logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.outcome import Estimate
from analysis.power_law import line
from analysis.published import ZHANG_OVERHEAD
from analysis.uncertainty.bootstrap import estimate

LEAST_BATCHES = 3
OVERHEAD = ZHANG_OVERHEAD
STARTS = 40  # B_crit across the batches and beyond
_BEYOND = 3.0  # in ln B_crit
_FAR = 30.0  # in ln B_crit: S_min or E_min is nothing there
_CLOSE = 1e-10  # in ln B_crit
_STEPS = 100


@dataclass(frozen=True)
class Tradeoff:
    """Fits of S = S_min + E_min/B [problems]. inverse: [problems, 2, 2], the covariance of (ln S_min, ln E_min) for
    unit residual variance. variance: residual variance of ln S with `freedom` degrees of freedom. batches: fitted
    points. fitted: ln S at every batch [problems, batches]. bracketed: B_crit lies between the least and greatest
    batch. converged: the fit is a minimum (False where there was none)."""

    ln_s: np.ndarray
    ln_e: np.ndarray
    inverse: np.ndarray
    variance: np.ndarray
    batches: np.ndarray
    fitted: np.ndarray
    bracketed: np.ndarray
    converged: np.ndarray

    @property
    def ln_b(self) -> np.ndarray:
        """ln B_crit in tokens."""
        return self.ln_e - self.ln_s

    @property
    def ln_b_inverse(self) -> np.ndarray:
        """Variance of ln B_crit for unit residual variance."""
        v = self.inverse
        return v[..., 0, 0] + v[..., 1, 1] - 2 * v[..., 0, 1]


def fit_tradeoffs(batches: np.ndarray, ln_steps: np.ndarray) -> Tradeoff:
    """Fit S = S_min + E_min/B on ln S, both positive, for many problems at once.

    batches: [n] tokens. ln_steps: [problems, n], nan where a batch did not reach the target. Problems with fewer than
    three batches get nan.
    """
    ln_batches = np.log(batches)
    known = np.isfinite(ln_steps)
    count = known.sum(axis=1)
    enough = count >= LEAST_BATCHES
    y = np.where(known, ln_steps, 0.0)
    w = (known & enough[:, None]).astype(float)
    ln_b, converged = _critical(ln_batches, y, w)
    shape, share, left, _ = _profile(ln_b, ln_batches, y, w)
    ln_s = (w * (y - shape)).sum(axis=1) / np.maximum(count, 1)
    gram = np.einsum("pn,pni,pnj->pij", w, *[np.stack([1 - share, share], axis=2)] * 2)
    inverse = np.full((len(y), 2, 2), np.nan)
    inverse[enough] = np.linalg.pinv(gram[enough], hermitian=True)
    least = np.where(known, ln_batches, np.inf).min(axis=1)
    greatest = np.where(known, ln_batches, -np.inf).max(axis=1)
    return Tradeoff(
        np.where(enough, ln_s, np.nan),
        np.where(enough, ln_s + ln_b, np.nan),
        inverse,
        np.where(enough, (left**2).sum(axis=1) / np.maximum(count - 2, 1), np.nan),
        count,
        np.where(enough[:, None], ln_s[:, None] + shape, np.nan),
        enough & (ln_b >= least) & (ln_b <= greatest),
        enough & converged,
    )


def _critical(ln_batches: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln B_crit [problems] of the least squares, and whether it was found.

    With ln S = ln S_min + ln(1 + B_crit/B), the best S_min is in closed form at any B_crit, so each problem is one
    curve in ln B_crit. Its lowest point on a grid lies between two neighbours, and Newton's method goes on from there,
    bisecting where it would leave them. A problem that falls for ever ends at `_FAR` beyond the batches.
    """
    low, high = ln_batches.min(), ln_batches.max()
    grid = np.linspace(low - _BEYOND, high + _BEYOND, STARTS)
    shape = np.logaddexp(0.0, grid[:, None] - ln_batches)
    weight = np.maximum(w.sum(axis=1), 1.0)[:, None]
    y = y - (w * y).sum(axis=1, keepdims=True) / weight
    error = w @ (shape**2).T - 2 * (w * y) @ shape.T - ((w * y).sum(axis=1, keepdims=True) - w @ shape.T) ** 2 / weight
    start = error.argmin(axis=1)
    knots = np.concatenate([[low - _FAR], grid, [high + _FAR]])
    x, below, above = grid[start], knots[start], knots[start + 2]
    moving = np.asarray(w.any(axis=1))
    for _ in range(_STEPS):
        rows = np.flatnonzero(moving)
        if not len(rows):
            break
        _, share, left, bend = _profile(x[rows], ln_batches, y[rows], w[rows])
        fall = (left * share).sum(axis=1)  # minus half the derivative
        below[rows], above[rows] = np.where(fall > 0, x[rows], below[rows]), np.where(fall > 0, above[rows], x[rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            step = fall / bend
        new = x[rows] + step
        inside = (bend > 0) & (new > below[rows]) & (new < above[rows])
        new = np.where(inside, new, (below[rows] + above[rows]) / 2)
        moving[rows] = np.abs(new - x[rows]) > _CLOSE
        x[rows] = new
    return x, ~moving


def _profile(
    ln_b: np.ndarray, ln_batches: np.ndarray, y: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At B_crit of each problem, [problems, n] each: ln(1 + B_crit/B), the share of E_min/B in the steps, the residuals
    at the best S_min; and half the second derivative of their squares [problems]."""
    z = ln_b[:, None] - ln_batches
    shape, share = np.logaddexp(0.0, z), 0.5 * (1 + np.tanh(z / 2))
    weight = np.maximum(w.sum(axis=1, keepdims=True), 1.0)
    left = y - shape
    left = w * (left - (w * left).sum(axis=1, keepdims=True) / weight)
    centred = w * (share - (w * share).sum(axis=1, keepdims=True) / weight)
    return shape, share, left, (centred**2).sum(axis=1) - (left * share * (1 - share)).sum(axis=1)


def fit_law(ln_loss: np.ndarray, ln_b: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(intercept, slope) of ln B_crit against ln L: B_star = exp(intercept), alpha_B = -1/slope. nan for fewer than
    three points at different losses."""
    good = np.isfinite(ln_b) & (weights > 0)
    if len(np.unique(ln_loss[good])) < 3:
        return np.nan, np.nan
    return line(ln_loss[good], ln_b[good], weights[good])


def law_estimates(law: np.ndarray) -> dict[str, Estimate]:
    """B_star, alpha_B and slope from (intercept, slope) of the law [1 + replicates, 2], the first of the data. The
    interval of alpha_B = -1/slope follows from that of the slope; it has no upper end where the slope may be zero."""
    slope = estimate(law[:, 1])
    alpha = Estimate(-1 / slope.value)
    if slope.se is not None and slope.low is not None and slope.high is not None:
        low = -1 / slope.low if slope.low < 0 else None
        high = -1 / slope.high if slope.high < 0 else None
        alpha = Estimate(alpha.value, slope.se / slope.value**2, low, high)
    return {
        "B_star": estimate(np.exp(law[:, 0])),
        "alpha_B": alpha,
        "slope": slope,
    }


def overhead_batch(
    b_crit: np.ndarray | float, optimal: np.ndarray | float, overhead: float = OVERHEAD
) -> np.ndarray | float:
    """The batch in tokens at which the steps exceed linear scaling from the batch `optimal` by `overhead`: the critical
    batch of Zhang et al. 2024 (arXiv 2410.21676, section 2), with 20% and an `optimal` of 256 sequences.

    With S(B) = S_min (1 + B_crit/B), linear scaling from B_0 takes S(B_0) B_0/B steps, and S(B) is (B + B_crit)/(B_0 +
    B_crit) times that; so B = B_0 + overhead (B_0 + B_crit).
    """
    return optimal + overhead * (optimal + b_crit)
