"""Intervals of a biased procedure, from simulations whose truth is known.

The procedure is repeated on simulated data, and each result is set against what it should have been: the truth of the
simulation. The estimate moves by the difference, draw = value - (replicate - truth), in logarithms for what is
positive (basic bootstrap: Davison & Hinkley 1997, section 5.2). Percentiles of the draws allow for the bias of the
procedure; the value itself is left as it is, and the bias is stated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.outcome import LEVEL, Estimate, holding


def is_logarithm(name: str) -> bool:
    """Whether the procedure gives an estimate as its logarithm: coefficients and curvatures are positive."""
    return name.endswith("coefficient") or name == "curvature"


def plain_value(name: str, value: np.ndarray | float) -> np.ndarray:
    """The estimate itself."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(value) if is_logarithm(name) else value)


def lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(intercept, slope) [...] of the weighted least-squares lines through x [n] and each row of y [..., n]. Points
    with a nan are left out; fewer than two distinct x give nan."""
    w = np.isfinite(y) * (np.ones(len(x)) if weights is None else weights)
    clean = np.where(w > 0, y, 0.0)
    total = w.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = (w * x).sum(axis=-1) / total, (w * clean).sum(axis=-1) / total
        off = x - mean_x[..., None]
        spread = (w * off**2).sum(axis=-1)
        slope = (w * off * (clean - mean_y[..., None])).sum(axis=-1) / np.where(spread > 1e-18 * total, spread, np.nan)
    return mean_y - slope * mean_x, slope


def line_errors(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Least-squares standard errors of the (intercept, slope) of `lines` for one y [n]; nan for fewer than three."""
    good = np.isfinite(y)
    w = (np.ones(len(x)) if weights is None else weights)[good]
    if good.sum() < 3:
        return np.nan, np.nan
    intercept, slope = lines(x, y, weights)
    variance = float((w * (y[good] - intercept - slope * x[good]) ** 2).sum()) / (int(good.sum()) - 2)
    mean = np.average(x[good], weights=w)
    spread = float((w * (x[good] - mean) ** 2).sum())
    return float(np.sqrt(variance * (1 / w.sum() + mean**2 / spread))), float(np.sqrt(variance / spread))


def estimates(
    values: Mapping[str, float],
    error: Mapping[str, np.ndarray],
    shift: Mapping[str, float],
    scale: np.ndarray,
    level: float = LEVEL,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray], int]:
    """Estimates, joint draws [k], and how many replicates failed and are not among the draws.

    values: of each estimate, as logarithms where `is_logarithm`. error: [k] each, replicates less their truth, nan
    where the procedure found nothing. shift: of each, by which the truth is known to differ from what the procedure
    aimed at. scale: [k], what the noise of each replicate was multiplied by (`redraw.scales`); the standard error is
    that of unscaled noise. No interval is given where more than half of the replicates failed.
    """
    good = np.all([np.isfinite(v) for v in error.values()], axis=0)
    failed = int((~good).sum())
    if good.sum() < 2 or good.mean() < 0.5 or not all(np.isfinite(v) for v in shift.values()):
        return {name: Estimate(float(plain_value(name, v))) for name, v in values.items()}, {}, failed
    found, draws = {}, {}
    for name, value in values.items():
        off = error[name][good] - shift[name]
        draws[name] = plain_value(name, value - off)
        spread = float(((off - off.mean()) / scale[good]).std(ddof=1))
        bias, own = float(off.mean()), float(plain_value(name, value))
        low, high = holding(own, *map(float, quantiles(draws[name], level)))
        if is_logarithm(name):
            spread, bias = spread * own, own * float(np.expm1(bias))
        found[name] = Estimate(own, spread, low, high, bias)
    return found, draws, failed


def quantiles(draws: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Both ends [2, ...] of the central interval of draws [k, ...]: of k draws and the truth, alike in distribution,
    the truth lies between them with probability `level` for any k."""
    return np.asarray(np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull"))


def shifted(value: np.ndarray, replicates: np.ndarray, truth: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Pointwise intervals [2, n] by the same rule; replicates: [k, n]. nan where fewer than half of them are known."""
    out = np.full((2, len(value)), np.nan)
    count = np.isfinite(replicates).sum(axis=0)
    known = (count >= 2) & (count >= len(replicates) / 2) & np.isfinite(value) & np.isfinite(truth)
    if known.any():
        moved = value[known] - (replicates[:, known] - truth[known])
        out[:, known] = quantiles(moved, level)
    return out


def difference(name: str, one: float, other: float) -> float:
    """one - other, given as the procedure gives them, in units of the estimate."""
    return float(plain_value(name, one) - plain_value(name, other))
