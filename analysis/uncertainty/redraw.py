"""Intervals of least-squares fits: noise is redrawn around the fitted curve, and its variance with it.

The residual variance s^2 of a fit with f = points - parameters degrees of freedom is itself uncertain: given the data
the true variance is f s^2 / chi^2(f) (scaled inverse chi-square). Replicates that draw it so have Student-t tails, and
percentile intervals of a straight line are the exact t intervals. A plain residual bootstrap is too narrow for the few
points that such fits often have: with five points its nominal 90% is about 80%.
"""

from __future__ import annotations

import numpy as np

from analysis.outcome import LEVEL, Estimate


def scales(freedom: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count] factors of the noise's standard deviation, sqrt(f / chi^2(f)); `freedom` f > 0 need not be whole."""
    return np.sqrt(freedom / rng.chisquare(freedom, count))


def interval(
    value: float, draws: np.ndarray, scale: np.ndarray, *, logarithm: bool = False, level: float = LEVEL
) -> Estimate:
    """Estimate of `value` from its replicates [count], refitted to noise that was multiplied by `scale` [count].

    Percentile interval. The standard error is the replicates' standard deviation at the estimated variance, every
    deviation divided by its scale: with few degrees of freedom the redrawn ones have no finite standard deviation.
    logarithm: deviations are those of the logarithm (for a positive quantity). Replicates that are nan are left out;
    when they are more than half, there is no interval.
    """
    good = np.isfinite(draws)
    if good.sum() < 2 or good.mean() < 0.5 or not np.isfinite(value):
        return Estimate(value)
    draws, scale = draws[good], scale[good]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    if logarithm and value > 0:
        with np.errstate(divide="ignore"):
            deviations = value * (np.log(draws) - np.log(value)) / scale
        deviations = deviations[np.isfinite(deviations)]
    else:
        deviations = (draws - value) / scale
    return Estimate(value, float(deviations.std(ddof=1)), float(low), float(high))
