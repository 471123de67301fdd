"""The trade-off S = S_min + E_min/B at one model and target loss, and the law of B_crit over losses.

The fit is on ln S, and B_crit = E_min/S_min tokens (Kaplan et al. 2020, Eq. 5.1 to 5.4). The law is B_crit = B_star /
L^(1/alpha_B) (Eq. 5.3), a weighted line in logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis import engine
from analysis.outcome import Estimate
from analysis.power_law import line
from analysis.uncertainty.bootstrap import estimate

LEAST_BATCHES = 3
OVERHEAD = 0.2  # of steps beyond linear scaling (Zhang et al. 2024)
STARTS = 6  # B_crit across the batches and a little beyond


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


def fit_tradeoffs(batches: np.ndarray, ln_steps: np.ndarray, device: str = "cpu") -> Tradeoff:
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
    design = np.zeros((2, len(batches), 2))
    design[0, :, 0] = design[1, :, 1] = 1
    offset = np.stack([np.zeros(len(batches)), -ln_batches])
    guesses = np.linspace(ln_batches.min() - 2, ln_batches.max() + 2, STARTS)  # each with its best S_min
    rest = y[:, None] - np.log1p(np.exp(guesses[:, None] - ln_batches))
    ln_s = (w[:, None] * rest).sum(axis=2) / np.maximum(count, 1)[:, None]
    starts = np.stack([ln_s, ln_s + guesses], axis=2)
    best = engine.solve(design, y, starts, offset=offset, weights=w, device=device)
    ln_s, ln_e = np.where(enough, best.parameters.T, np.nan)
    freedom = np.maximum(count - 2, 1)
    ln_b = ln_e - ln_s
    least = np.where(known, ln_batches, np.inf).min(axis=1)
    greatest = np.where(known, ln_batches, -np.inf).max(axis=1)
    inverse = np.full((len(y), 2, 2), np.nan)
    inverse[enough] = np.linalg.pinv(best.gram[enough], hermitian=True)
    return Tradeoff(
        ln_s,
        ln_e,
        inverse,
        np.where(enough, best.objective / freedom, np.nan),
        count,
        np.where(enough[:, None], np.logaddexp(best.parameters[:, :1], best.parameters[:, 1:] - ln_batches), np.nan),
        enough & (ln_b >= least) & (ln_b <= greatest),
        enough & best.converged,
    )


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
