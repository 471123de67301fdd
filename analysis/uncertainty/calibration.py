"""Do intervals hold what they say? Sweeps drawn from known laws are analysed, and the truth is sought in each interval.

Truth is the generating law for its own constants, and for the frontier and isoflop the optimum of that law on a dense
grid of sizes at the compute values the sweep was read at; what the few sizes of a real sweep change in the procedure
without any noise is the bias of the grid, reported apart. `scripts/bench_calibration.py` runs it and writes the table
that `analysis.uncertainty.labels` reads: a quantity whose coverage left the band is labelled in every result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from analysis import envelope as env
from analysis.chain.results import POINT, Critical, Laws, exponent_name
from analysis.outcome import LEVEL, Estimate
from analysis.uncertainty.dense import dense_optimum
from analysis.uncertainty.simulate import Truth
from sweep.schema import PF_DAY

ACCEPTED = (0.85, 0.95)  # coverage of nominal 90% intervals


@dataclass(frozen=True)
class Judged:
    """One interval of one sweep beside the truth."""

    quantity: str
    truth: float
    estimate: Estimate


def named_estimates(laws: Laws) -> dict[str, Estimate]:
    """Every estimate of every law, by "law.name"."""
    return {f"{law}.{name}": e for law, own in laws.estimates().items() for name, e in own.items()}


@dataclass(frozen=True)
class World:
    """What a sweep was drawn from. constants: by "law.name". ln_loss: (ln N, ln D) -> ln L of its runs at the batch the
    sizes share. kaplan: Kaplan's law, where it is that."""

    constants: Mapping[str, float]
    ln_loss: Callable[[float, np.ndarray], np.ndarray]
    kaplan: Truth | None = None


def judge(laws: Laws, world: World) -> list[Judged]:
    """Every estimate that has an interval and a truth."""
    truth = {**world.constants, **optimal(laws, world)}
    rows = [Judged(name, truth[name], e) for name, e in named_estimates(laws).items() if name in truth]
    if world.kaplan is not None and laws.critical is not None:
        rows += _points(laws.critical, world.kaplan)
    return [row for row in rows if row.estimate.low is not None and row.estimate.high is not None]


def optimal(laws: Laws, world: World) -> dict[str, float]:
    """Lines through the law's own optima at the compute values of the frontier and isoflop."""
    truth: dict[str, float] = {}
    frontier, isoflop = laws.frontier, laws.isoflop
    params = np.unique(laws.runs["params"].to_numpy(dtype=float))
    if frontier is not None:
        for kind in frontier.fits:
            rows = frontier.optima[(frontier.optima["kind"] == kind) & (frontier.optima["edge"] == "interior")]
            at = np.log(rows["flops"].to_numpy(dtype=float))
            law = None
            if kind == "adjusted" and world.kaplan is not None:
                law = float(np.log(world.kaplan.B_star)), -1 / world.kaplan.alpha_B
            batch = frontier.batch_tokens
            best = dense_optimum(world.ln_loss, params, 6 * params, batch, law, at)
            lines = env.fit_lines(at, env.quantities(at, best.ln_n, best.ln_k, best.ln_l, batch, law))
            truth |= _line_constants(f"frontier {kind}", lines)
            intercept, slope = (float(v) for v in lines["L"])  # the same line as Kaplan writes it
            law_c, suffix = ("kaplan-c", "") if kind == "raw" else ("kaplan-c-min", "_min")
            truth[f"{law_c}.alpha_C{suffix}"] = -slope
            truth[f"{law_c}.C_c{suffix}"] = float(np.exp(-intercept / slope)) / PF_DAY
    if isoflop is not None and isoflop.fit is not None:
        at = np.log(isoflop.optima[isoflop.optima["used"]]["budget"].to_numpy(dtype=float))
        best = dense_optimum(world.ln_loss, params, 6 * params, None, None, at)
        lines = env.fit_lines(at, {"N": best.ln_n, "D": at - best.ln_k, "L": best.ln_l})
        truth |= _line_constants("isoflop", lines)
    return truth


def _line_constants(law: str, lines: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = {}
    for name, (intercept, slope) in lines.items():
        found[f"{law}.{exponent_name(name)}"] = float(slope)
        found[f"{law}.{name}_coefficient"] = float(np.exp(intercept))
    return found


def _points(critical: Critical, law: Truth) -> list[Judged]:
    """B_crit at the loss it is stated at, and S_min, E_min and B_crit of every used point."""
    rows = []
    if critical.law is not None and critical.at_loss is not None:
        at = float(law.B_crit(critical.at_loss))
        rows.append(Judged("critical-batch.B_crit", at, critical.law["B_crit"]))
    for point in critical.points[critical.points["used"]].to_dict("records"):
        s_min = float(law.S_min(point["params"], point["target_loss"]))
        batch = float(law.B_crit(point["target_loss"]))
        for name, value in (("S_min", s_min), ("E_min", s_min * batch), ("B_crit", batch)):
            own = Estimate(point[name], point[f"{name}_se"], point[f"{name}_low"], point[f"{name}_high"])
            rows.append(Judged(f"{POINT}.{name}", value, own))
    return rows


def coverage(judged: Iterable[Judged]) -> pd.DataFrame:
    """One row a quantity: how many intervals, the truth, the mean and standard deviation of the estimates, the mean of
    their standard errors, coverage, the shares of intervals that lie below and above the truth, and whether coverage is
    within `ACCEPTED`."""
    rows = [(j.quantity, j.truth, j.estimate.value, j.estimate.se, j.estimate.low, j.estimate.high) for j in judged]
    frame = pd.DataFrame(rows, columns=["quantity", "truth", "value", "se", "low", "high"]).astype({"se": float})
    frame["below"], frame["above"] = frame["high"] < frame["truth"], frame["low"] > frame["truth"]
    out = []
    for name, mine in frame.groupby("quantity", sort=False):
        covered = float(1 - mine["below"].mean() - mine["above"].mean())
        same = mine["truth"].nunique() == 1
        out.append(
            {
                "quantity": name,
                "intervals": len(mine),
                "truth": mine["truth"].iloc[0] if same else np.nan,
                "mean": mine["value"].mean() if same else np.nan,
                "sd": mine["value"].std() if same else np.nan,
                "se": mine["se"].mean() if same else np.nan,
                "coverage": covered,
                "below": float(mine["below"].mean()),
                "above": float(mine["above"].mean()),
                "calibrated": ACCEPTED[0] <= covered <= ACCEPTED[1],
            }
        )
    return pd.DataFrame(out)


def binomial_band(number: int, share: float = LEVEL, level: float = 0.999) -> tuple[int, int]:
    """Counts between which a binomial variable of `number` draws at `share` lies with probability `level`."""
    low, high = binom.interval(level, number, share)
    return int(low), int(high)
