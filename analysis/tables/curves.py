"""One training curve as a decreasing function: smoothing, and where it crosses a loss.

A running minimum would flatter noisy curves (small batches, high rates), so the test loss is smoothed by isotonic
regression in the logarithm of the loss over the logarithm of the tokens, the level stretches are contracted to their
centres, and a monotone cubic (PCHIP) joins them. Nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

_FINE = 6  # points of the fine grid between two knots; linear interpolation between those
_REACH = 1.0  # in ln(tokens): stretch at the end whose mean slope continues a curve
_EDGE = 1e-9  # slack of the ends in ln(tokens), so that a run's own last point counts as inside


@dataclass(frozen=True)
class Curve:
    """A smoothed curve. x: ln(tokens), increasing; y: ln(loss), not increasing; start: ln(tokens) where readings begin
    (the end of the warm-up, or the first evaluation)."""

    x: np.ndarray
    y: np.ndarray
    start: float

    @property
    def end(self) -> float:
        """ln(tokens) of the last evaluation."""
        return float(self.x[-1])

    def ln_loss(self, ln_tokens: np.ndarray) -> np.ndarray:
        """ln(loss) at `ln_tokens`; nan outside the readable range."""
        inside = (ln_tokens >= self.start - _EDGE) & (ln_tokens <= self.end + _EDGE)
        return np.where(inside, np.interp(ln_tokens, self.x, self.y), np.nan)

    def ln_tokens(self, ln_loss: np.ndarray) -> np.ndarray:
        """ln(tokens) at which the curve first reaches `ln_loss`: nan where it never gets there, -inf where it already
        was below at the first evaluation. The result may lie before `start`: a crossing inside the warm-up."""
        reached = np.interp(-ln_loss, -self.y, self.x)
        return np.where(ln_loss > self.y[0], -np.inf, np.where(ln_loss >= self.y[-1], reached, np.nan))

    def slope(self, ln_tokens: np.ndarray) -> np.ndarray:
        """d ln(loss) / d ln(tokens), as the mean over half of `_REACH` on either side, cut off at the ends."""
        low = np.clip(ln_tokens - _REACH / 2, self.x[0], self.x[-1])
        high = np.clip(ln_tokens + _REACH / 2, self.x[0], self.x[-1])
        rise = np.interp(high, self.x, self.y) - np.interp(low, self.x, self.y)
        return rise / np.maximum(high - low, 1e-12)

    def extended(self, ln_tokens: np.ndarray) -> np.ndarray:
        """ln(loss), continued beyond the last evaluation with the slope there. For simulation, not for reading laws."""
        beyond = np.maximum(ln_tokens - self.end, 0.0)
        return np.interp(ln_tokens, self.x, self.y) + beyond * self.slope(np.array(self.end))


def smooth(ln_tokens: np.ndarray, ln_loss: np.ndarray, start: float = -np.inf) -> Curve:
    """Decreasing fit to one run's evaluations at increasing `ln_tokens`; one evaluation gives a curve of one point."""
    if len(ln_tokens) < 2:
        return Curve(ln_tokens.copy(), ln_loss.copy(), max(start, float(ln_tokens[0])))
    fitted = isotonic_regression(ln_loss, increasing=False)
    first = fitted.blocks[:-1]
    size = np.diff(fitted.blocks)
    x = np.add.reduceat(ln_tokens, first) / size
    y = np.asarray(fitted.x)[first]
    # The outermost levels reach to the ends of the run, so that it can be read over its whole length.
    if size[0] > 1:
        x, y = np.concatenate([ln_tokens[:1], x]), np.concatenate([y[:1], y])
    if size[-1] > 1:
        x, y = np.concatenate([x, ln_tokens[-1:]]), np.concatenate([y, y[-1:]])
    if len(x) > 2:
        between = np.arange(_FINE) / _FINE
        fine = np.append((x[:-1, None] + np.diff(x)[:, None] * between).ravel(), x[-1])
        x, y = fine, PchipInterpolator(x, y)(fine)
    return Curve(x, y, max(start, float(ln_tokens[0])))
