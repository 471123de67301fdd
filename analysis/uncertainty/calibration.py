"""Do intervals hold what they say? Sweeps drawn from known laws are analysed, and the truth is sought in each interval.

Truth is the generating law for its own constants, and for the frontier and isoflop the noise-free procedure on a dense
grid of sizes; what the few sizes of a real sweep change in that procedure without any noise is the bias of the grid,
reported apart. `scripts/bench_calibration.py` runs it and writes the table that `labels` reads: a quantity whose
coverage left the accepted band carries "calibrated": false in every result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.stats import binom

from analysis.chain.results import Laws
from analysis.outcome import LEVEL, Estimate
from analysis.uncertainty.simulate import Truth

ACCEPTED = (0.85, 0.95)  # coverage of nominal 90% intervals
TABLE = "calibration.csv"


@dataclass(frozen=True)
class Judged:
    """One interval of one sweep beside the truth."""

    quantity: str
    truth: float
    estimate: Estimate


def named_estimates(laws: Laws) -> dict[str, Estimate]:
    """Every estimate of every law, by "law.name"."""
    found: dict[str, Mapping[str, Estimate]] = {}
    if laws.critical is not None and laws.critical.law is not None:
        found["critical-batch"] = laws.critical.law
    if laws.frontier is not None:
        for kind, fits in laws.frontier.fits.items():
            parts = {q: {"exponent": law.exponent, "coefficient": law.coefficient} for q, law in fits.items()}
            if kind == "raw":
                parts.pop("B", None)  # fixed, not found
            found[f"frontier {kind}"] = {f"{q}_{part}": e for q, own in parts.items() for part, e in own.items()}
    if laws.isoflop is not None and laws.isoflop.fit is not None:
        found["isoflop"] = laws.isoflop.fit
    if laws.parametric is not None:
        found["parametric"] = laws.parametric.estimates
    if laws.surface is not None:
        found["kaplan-ns"] = laws.surface.estimates
    return {f"{law}.{name}": e for law, estimates in found.items() for name, e in estimates.items()}


def judge(laws: Laws, truth: Mapping[str, float], law: Truth | None = None) -> list[Judged]:
    """Every estimate that has an interval and a truth. With the generating `law`, B_crit at the loss it is stated at
    and S_min, E_min and B_crit of every used point are judged too."""
    rows = [Judged(name, truth[name], e) for name, e in named_estimates(laws).items() if name in truth]
    if law is not None and laws.critical is not None:
        critical = laws.critical
        if critical.law is not None and critical.at_loss is not None:
            at = float(law.B_crit(critical.at_loss))
            rows.append(Judged("critical-batch.B_crit", at, critical.law["B_crit"]))
        for point in critical.points[critical.points["used"]].to_dict("records"):
            s_min = float(law.S_min(point["params"], point["target_loss"]))
            batch = float(law.B_crit(point["target_loss"]))
            for name, value in (("S_min", s_min), ("E_min", s_min * batch), ("B_crit", batch)):
                own = Estimate(point[name], point[f"{name}_se"], point[f"{name}_low"], point[f"{name}_high"])
                rows.append(Judged(f"critical-batch.{name} of a point", value, own))
    return [row for row in rows if row.estimate.low is not None and row.estimate.high is not None]


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


@cache
def labels() -> dict[str, bool]:
    """Quantity -> whether its coverage was within `ACCEPTED` in every scenario of the shipped table."""
    table = files("analysis.uncertainty").joinpath(TABLE)
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    return {str(name): bool(mine.all()) for name, mine in frame.groupby("quantity")["calibrated"]}
