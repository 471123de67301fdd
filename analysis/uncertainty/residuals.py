"""What a law leaves: its residuals by size, data and compute, along each run, and against the seed noise.

Intervals hold noise. Where the form of a law does not fit, the residuals have a pattern: they rise or bend with N, D or
C, keep their sign over many neighbouring runs, or are many times the noise between seeds. A fit to least squares or
Huber's loss leaves almost no straight trend along its own terms, so the bend is tested beside the slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from analysis.outcome import Outcome, plain

SYMBOLS = {"params": "N", "tokens": "D", "flops": "C", "steps_min": "S_min", "x": "x"}
REGIONS = ("low", "middle", "high")
DOUBT = 1e-3  # two-sided chance of a finding where there is none, for each test
MATERIAL = 0.5  # of the rms: what a trend must amount to over the data's span
ROUNDING = 1e-10  # of ln(loss): residuals below are no residuals, whatever their pattern
FAR = 8.0  # robust standard deviations: what no noise of a few hundred points reaches
_LEAST_SIGNS = 5  # runs of either sign below which sign runs say nothing


@dataclass(frozen=True)
class Trend:
    """ln residual against x = ln of one quantity: change per e-fold (`slope`), and `bend`, the coefficient of x^2,
    each with a standard error that lets the points of one run be correlated. runs: sign runs of the mean residuals of
    the training runs in the order of x, where `expected_runs` +- `runs_sd` come about by chance (nan: too few)."""

    quantity: str
    span: float
    slope: float
    slope_se: float
    bend: float
    bend_se: float
    runs: int
    expected_runs: float
    runs_sd: float


@dataclass(frozen=True)
class Residuals:
    """Residuals ln(loss) - ln(fitted) of one fit.

    rms; largest, with its sign, at row `largest_row`. ratio: rms over the seed noise (None: not known).
    autocorrelation: of neighbouring points of one run, over `pairs` of them (nan: none). regions: mean, se and number
    of residuals in the low, middle and high third of each quantity. far: rows beyond `FAR` robust standard deviations.
    findings: what of this a reader should know, in words; none where all is as noise would have it.
    """

    points: int
    runs: int
    rms: float
    largest: float
    largest_row: int
    ratio: float | None
    autocorrelation: float
    pairs: int
    trends: dict[str, Trend]
    regions: pd.DataFrame
    far: np.ndarray
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("points", "runs", "rms", "largest", "largest_row", "ratio", "autocorrelation", "pairs", "findings")
        out = {name: getattr(self, name) for name in names}
        trends = {name: vars(trend) for name, trend in self.trends.items()}
        return plain({**out, "trends": trends, "regions": self.regions.to_dict("records"), "far": self.far.tolist()})


def residuals(
    residual: np.ndarray,
    quantities: Mapping[str, np.ndarray],
    *,
    run: np.ndarray | None = None,
    sigma: float | None = None,
) -> Residuals:
    """Diagnose `residual` [n] = ln(loss) - ln(fitted).

    quantities: those of `SYMBOLS` [n] that are known; constant ones are passed over. run: labels [n] of
    the points of one training run, in the order of their tokens (None: each point is a run of its own). sigma: standard
    deviation of ln(loss) between seeds.
    """
    r = np.asarray(residual, dtype=float)
    labels = np.arange(len(r)) if run is None else np.unique(np.asarray(run).astype(str), return_inverse=True)[1]
    used = {name: np.log(np.asarray(quantities[name], dtype=float)) for name in SYMBOLS if name in quantities}
    used = {name: x for name, x in used.items() if len(np.unique(x)) > 2}
    rms = float(np.sqrt(np.mean(r**2)))
    correlation, pairs = _autocorrelation(r, labels, used.get("tokens"))
    centre = float(np.median(np.abs(r - np.median(r)))) * 1.4826
    far = np.flatnonzero(np.abs(r) > FAR * centre) if centre > 0 else np.array([], dtype=int)
    worst = int(np.argmax(np.abs(r)))
    found = Residuals(
        points=len(r),
        runs=len(np.unique(labels)),
        rms=rms,
        largest=float(r[worst]),
        largest_row=worst,
        ratio=rms / sigma if sigma else None,
        autocorrelation=correlation,
        pairs=pairs,
        trends={name: _trend(name, r, x, labels) for name, x in used.items()},
        regions=_regions(r, used, labels),
        far=far,
    )
    found.findings.extend(_findings(found, quantities))
    return found


def residuals_of(outcome: Outcome, *, run: np.ndarray | None = None, sigma: float | None = None) -> Residuals | None:
    """Of a fit's own points; None where the fit keeps no residuals or is one of optima, not of losses. run: labels of
    its points, which it may have itself."""
    points = outcome.frames.get("points")
    if points is None or "residual" not in points or not len(points) or "optima" in outcome.frames:
        return None
    quantities = {name: points[name].to_numpy(dtype=float) for name in SYMBOLS if name in points}
    if "flops" not in quantities and {"params", "tokens"} <= set(quantities):
        quantities["flops"] = 6 * quantities["params"] * quantities["tokens"]
    label = next((name for name in ("run", "run_id") if name in points), None)
    if label is not None:
        run = points[label].to_numpy()
    elif run is not None and len(run) != len(points):  # rows of weight 0 took no part
        run = None
    return residuals(points["residual"].to_numpy(dtype=float), quantities, run=run, sigma=sigma)


def _trend(name: str, r: np.ndarray, x: np.ndarray, labels: np.ndarray) -> Trend:
    z = x - x.mean()
    slope, slope_se = _last_coefficient(np.stack([np.ones_like(z), z], axis=1), r, labels)
    bend, bend_se = _last_coefficient(np.stack([np.ones_like(z), z, z * z], axis=1), r, labels)
    runs, expected, sd = _sign_runs(r, x, labels)
    return Trend(name, float(np.ptp(x)), slope, slope_se, bend, bend_se, runs, expected, sd)


def _last_coefficient(design: np.ndarray, r: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Least squares with the sandwich variance over clusters (Liang & Zeger 1986), scaled by G/(G - p)."""
    count, p = int(labels.max()) + 1, design.shape[1]
    inverse = np.linalg.pinv(design.T @ design)
    k = inverse @ design.T @ r
    if count <= p:
        return float(k[-1]), math.nan
    scores = np.zeros((count, p))
    np.add.at(scores, labels, design * (r - design @ k)[:, None])
    variance = inverse @ scores.T @ scores @ inverse * count / (count - p)
    return float(k[-1]), math.sqrt(max(variance[-1, -1], 0.0))


def _sign_runs(r: np.ndarray, x: np.ndarray, labels: np.ndarray) -> tuple[int, float, float]:
    """Number of sign runs of the runs' mean residuals in the order of x, with its mean and deviation under chance
    (Wald & Wolfowitz 1940)."""
    size = np.bincount(labels)
    mean, at = np.bincount(labels, r) / size, np.bincount(labels, x) / size
    up = mean[np.argsort(at, kind="stable")] > 0
    runs = 1 + int((up[1:] != up[:-1]).sum())
    n, above = len(up), int(up.sum())
    if min(above, n - above) < _LEAST_SIGNS:
        return runs, math.nan, math.nan
    product = 2 * above * (n - above)
    return runs, 1 + product / n, math.sqrt(product * (product - n) / (n * n * (n - 1)))


def _autocorrelation(r: np.ndarray, labels: np.ndarray, ln_tokens: np.ndarray | None) -> tuple[float, int]:
    order = np.lexsort((np.arange(len(r)) if ln_tokens is None else ln_tokens, labels))
    same = labels[order][1:] == labels[order][:-1]
    one, other = r[order][:-1][same], r[order][1:][same]
    power = float(((one**2 + other**2) / 2).sum())
    return (float((one * other).sum()) / power if power > 0 else math.nan), int(same.sum())


def _regions(r: np.ndarray, used: Mapping[str, np.ndarray], labels: np.ndarray) -> pd.DataFrame:
    rows = []
    for name, x in used.items():
        edges = np.quantile(x, [1 / 3, 2 / 3])
        third = np.searchsorted(edges, x, side="left")
        for k, region in enumerate(REGIONS):
            take = third == k
            if take.any():
                own = np.unique(labels[take], return_inverse=True)[1]
                mean, se = _last_coefficient(np.ones((int(take.sum()), 1)), r[take], own)
                rows.append((name, region, *np.exp([x[take].min(), x[take].max()]), int(take.sum()), mean, se))
    return pd.DataFrame(rows, columns=["quantity", "region", "from", "to", "points", "mean", "se"])


def _findings(found: Residuals, quantities: Mapping[str, np.ndarray]) -> list[str]:
    """In words, the weightiest first."""
    out: list[str] = []
    if abs(found.largest) < ROUNDING:
        return out
    for trend in found.trends.values():
        out += _trend_findings(trend, found)
    if len(found.far):
        at = ", ".join(f"{SYMBOLS[name]} {np.asarray(quantities[name])[found.largest_row]:.3g}"
                       for name in ("params", "tokens") if name in quantities)  # fmt: skip
        one = len(found.far) == 1
        out.append(
            f"{len(found.far)} point{' lies' if one else 's lie'} more than {FAR:g} robust standard deviations off the "
            f"law, the farthest by {found.largest:+.1%}" + (f" at {at}" if at else "")
        )
    return out


def _trend_findings(trend: Trend, found: Residuals) -> list[str]:
    symbol, out = SYMBOLS[trend.quantity], []
    material = MATERIAL * found.rms
    if _certain(trend.slope, trend.slope_se, found.runs - 2) and abs(trend.slope) * trend.span > material:
        verb = "rise" if trend.slope > 0 else "fall"
        out.append(f"residuals {verb} with {symbol}: {trend.slope:+.2g} ± {trend.slope_se:.1g} of ln(loss) per e-fold")
    if _certain(trend.bend, trend.bend_se, found.runs - 3) and abs(trend.bend) * trend.span**2 / 4 > material:
        where = "at the ends than in the middle" if trend.bend > 0 else "in the middle than at the ends"
        out.append(
            f"residuals bend with {symbol}: they are higher {where} ({trend.bend:+.2g} ± {trend.bend_se:.1g} per "
            "squared e-fold)"
        )
    if trend.runs_sd > 0 and (trend.runs - trend.expected_runs) / trend.runs_sd < ndtri(DOUBT):
        out.append(
            f"signs of the residuals cluster along {symbol}: {trend.runs} sign runs where {trend.expected_runs:.0f} ± "
            f"{trend.runs_sd:.0f} come about by chance"
        )
    return out


def _certain(value: float, se: float, freedom: int) -> bool:
    """Whether a value is told from zero by Student's t."""
    return freedom > 0 and se > 0 and abs(value) / se > stdtrit(freedom, 1 - DOUBT / 2)
