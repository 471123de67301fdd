"""Power laws y = coefficient * x^exponent (+ offset), fitted on logarithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis import engine
from analysis.outcome import Estimate
from sweep.schema import InputError


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent."""

    coefficient: Estimate
    exponent: Estimate

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """The law's value at `x`."""
        return np.asarray(self.coefficient.value * np.asarray(x, dtype=float) ** self.exponent.value)

    def to_json(self) -> dict[str, object]:
        """Both estimates as plain data."""
        return {"coefficient": self.coefficient.to_json(), "exponent": self.exponent.to_json()}


def line(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """(intercept, slope) of the weighted least-squares line; pairs with a nan are left out, and fewer than two distinct
    x give nan."""
    good = np.isfinite(x) & np.isfinite(y)
    w = np.ones(int(good.sum())) if weights is None else weights[good]
    x, y = x[good], y[good]
    if len(x) < 2 or w.sum() <= 0:
        return np.nan, np.nan
    mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
    spread = float((w * (x - mean_x) ** 2).sum())
    if spread <= 0:
        return np.nan, np.nan
    if (y == y[0]).all():
        return float(y[0]), 0.0  # exactly, where rounding would leave a slope of 1e-30
    slope = float((w * (x - mean_x) * (y - mean_y)).sum()) / spread
    return float(mean_y - slope * mean_x), slope


def fit_power_law(
    x: np.ndarray, y: np.ndarray, *, weights: np.ndarray | None = None, offset: bool = False
) -> dict[str, Estimate]:
    """Squared residuals of ln y. Estimates `coefficient`, `exponent` and, with `offset`, `offset` (at least 0), with
    least-squares standard errors and no interval.

    Raises InputError for values that are not positive or for fewer than three points (four with an offset).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    free = 3 if offset else 2
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise InputError("power-law: x and y must be positive numbers; remove the other rows")
    if len(np.unique(x)) <= free:
        raise InputError(
            f"power-law: {len(np.unique(x))} distinct x do not determine {free} parameters and their error"
        )
    design = np.zeros((2 if offset else 1, len(x), free))
    design[0, :, 0], design[0, :, 1] = 1, np.log(x)
    intercept, slope = line(np.log(x), np.log(y), weights)
    starts = np.array([[intercept, slope]])
    if offset:
        design[1, :, 2] = 1
        low = np.log(y.min())
        shares = np.log([0.99, 0.9, 0.7, 0.4, 0.1, 1e-3])
        starts = np.array([[intercept + np.log1p(-np.exp(s)), f * slope, low + s] for s in shares for f in (1, 2, 4)])
    best = engine.solve(design, np.log(y), starts, weights=weights)
    covariance = np.linalg.pinv(best.gram[0]) * best.objective[0] / max(1, len(x) - free)
    se = np.sqrt(np.clip(np.diag(covariance), 0, None))
    theta = best.parameters[0]
    result = {
        "coefficient": Estimate(float(np.exp(theta[0])), float(np.exp(theta[0]) * se[0])),
        "exponent": Estimate(float(theta[1]), float(se[1])),
    }
    if offset:
        result["offset"] = Estimate(float(np.exp(theta[2])), float(np.exp(theta[2]) * se[2]))
    return result
