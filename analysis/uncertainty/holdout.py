"""Hold-out: a law fitted below a compute, set beside what was measured above it.

An interval says how well a law is known where it was measured; only runs beyond it say whether it goes on. The error of
a law that is extrapolated is the law's own as much as the noise's, and no resampling shows it.

    from analysis import parametric
    from analysis.uncertainty.holdout import hold_out
    columns = {"params": n, "tokens": d, "flops": 6 * n * d, "loss": loss}
    found = hold_out(lambda rows: parametric.fit(n[rows], d[rows], loss[rows]), columns, above=1e21)
    print(found.rms, found.points)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.outcome import LEVEL, Outcome, plain
from sweep.schema import PF_DAY, InputError

LEAST_HELD = 2
KEPT_POINTS = 500
Columns = Mapping[str, np.ndarray]
Fit = Callable[[np.ndarray], Outcome]


@dataclass(frozen=True)
class HoldOut:
    """How far a law fitted at C < `above` (FLOP) is from what was measured at C >= `above`.

    quantity: what was predicted, "loss" (nats) or "params" (N_opt of a budget). fitted, held: number of rows on either
    side. reach: the greatest held-out compute over the greatest fitted one. points: one row a prediction, columns
    flops, measured, predicted, error = predicted/measured - 1, and low, high (interval of the law's value, without the
    noise of the single measurement; nan where the fit has no draws), for losses params and tokens too.
    """

    law: str
    quantity: str
    above: float
    fitted: int
    held: int
    reach: float
    points: pd.DataFrame

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors."""
        return float(np.sqrt(np.mean(self.points["error"] ** 2)))

    @property
    def median(self) -> float:
        """Median of their sizes."""
        return float(self.points["error"].abs().median())

    @property
    def largest(self) -> float:
        """The largest of their sizes."""
        return float(self.points["error"].abs().max())

    @property
    def mean(self) -> float:
        """Signed mean: above zero where the law gives more than was measured."""
        return float(self.points["error"].mean())

    def text(self) -> str:
        """In one line."""
        what = {"loss": "losses", "params": "optimal sizes"}.get(self.quantity, self.quantity)
        errors = (
            f"{self.rms:.2%} rms, {self.median:.2%} median, {self.largest:.2%} at most, {self.mean:+.2%} on average"
        )
        return (
            f"fitted to {self.fitted} points below {self.above:.3g} FLOP, it misses the {len(self.points)} {what} "
            f"above (up to {self.reach:.3g} times the compute) by {errors}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, with at most `KEPT_POINTS` of the points, evenly spread."""
        summary = {"rms": self.rms, "median": self.median, "max": self.largest, "mean": self.mean}
        head = {"quantity": self.quantity, "above": self.above, "fitted": self.fitted, "held": self.held}
        points = self.points.iloc[:: max(1, -(-len(self.points) // KEPT_POINTS))]
        return plain({**head, "reach": self.reach, "errors": summary, "points": points.to_dict("records")})


def hold_out(fit: Fit, columns: Columns, above: float, *, whole: Outcome | None = None) -> HoldOut:
    """Fit the rows with C < `above`, predict those with C >= `above`.

    fit: boolean rows [n] -> the law fitted to these rows, by the same function and options as to all of them.
    columns: what it was given, [n] each: `flops` (or params and tokens, C = 6ND), and what the law maps (`params`,
    `tokens`, `steps_min`, `unique_tokens`, `x`, ...) to `loss` (`y` of a power law). whole: the law fitted to all rows;
    laws of an optimum (isoflop, frontier) are judged by the optima it found above the threshold and fit it where it is
    not given.

    Raises InputError where a side is too small for the law or to judge it, or the law has nothing to predict.
    """
    flops = _compute(columns)
    below = flops < above
    held = int((~below).sum())
    if not below.any() or held < LEAST_HELD:
        raise InputError(
            f"holdout: {held} of {len(flops)} points lie at or above {above:.3g} FLOP (they span {flops.min():.3g} to "
            f"{flops.max():.3g}); give a threshold with at least {LEAST_HELD} points above and enough for the law below"
        )
    try:
        part = fit(below)
    except InputError as error:
        raise InputError(f"holdout: the {int(below.sum())} points below {above:.3g} FLOP: {error}") from error
    if part.law in PREDICTORS:
        points = _values(part, {name: np.asarray(v)[~below] for name, v in columns.items()}, flops[~below])
        quantity = "loss" if "loss" in columns else "y"
    else:
        points = _optima(part, whole or fit(np.ones(len(flops), dtype=bool)), above)
        quantity = "params"
    reach = float(points["flops"].max() / flops[below].max())
    return HoldOut(part.law, quantity, float(above), int(below.sum()), held, reach, points)


def predicted(law: str, values: Mapping[str, Any], columns: Columns) -> np.ndarray:
    """What a law with these constants gives at these rows. values: floats, or draws [k, 1] for [k, n]."""
    return np.asarray(PREDICTORS[law](values, columns), dtype=float)


def _compute(columns: Columns) -> np.ndarray:
    if "flops" in columns:
        return np.asarray(columns["flops"], dtype=float)
    if {"params", "tokens"} <= set(columns):
        return 6 * np.asarray(columns["params"], dtype=float) * np.asarray(columns["tokens"], dtype=float)
    raise InputError("holdout: the table has no compute to split at; give flops, or params and tokens")


def _values(part: Outcome, columns: Columns, flops: np.ndarray) -> pd.DataFrame:
    """Predicted and measured values of the held-out rows."""
    measured = np.asarray(columns["loss" if "loss" in columns else "y"], dtype=float)
    value = predicted(part.law, {name: e.value for name, e in part.estimates.items()}, columns)
    frame = pd.DataFrame({"flops": flops})
    for name in ("params", "tokens"):
        if name in columns:
            frame[name] = columns[name]
    frame["measured"], frame["predicted"], frame["error"] = measured, value, value / measured - 1
    draws = {name: v[:, None] for name, v in part.draws.items()}
    return _with_interval(frame, predicted(part.law, draws, columns) if draws else None)


def _optima(part: Outcome, whole: Outcome, above: float) -> pd.DataFrame:
    """N_opt of the law fitted below beside the optima found above."""
    if "optima" not in whole.frames or "a" not in part.estimates:
        raise InputError(f"holdout: {whole.law} is no law of compute; hold-out needs a law of the loss or of N_opt")
    found = whole.frames["optima"]
    at = "flops" if "flops" in found else "budget"
    found = found[(found[at] >= above) & np.isfinite(found["params"])]
    if "used" in found:
        found = found[found["used"].astype(bool)]
    if not len(found):
        raise InputError(f"holdout: no optimum between two sizes lies above {above:.3g} FLOP; give a lower threshold")
    flops, measured = found[at].to_numpy(dtype=float), found["params"].to_numpy(dtype=float)
    value = part.estimates["N_coefficient"].value * flops ** part.estimates["a"].value
    frame = pd.DataFrame({"flops": flops, "measured": measured, "predicted": value, "error": value / measured - 1})
    if not {"a", "N_coefficient"} <= set(part.draws):
        return _with_interval(frame, None)
    return _with_interval(frame, part.draws["N_coefficient"][:, None] * flops ** part.draws["a"][:, None])


def _with_interval(frame: pd.DataFrame, draws: np.ndarray | None) -> pd.DataFrame:
    frame["low"], frame["high"] = np.nan, np.nan
    if draws is not None:
        good = draws[np.isfinite(draws).all(axis=1)]
        if len(good) > 1:
            frame["low"], frame["high"] = np.quantile(good, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return frame


def _parametric(v: Mapping[str, Any], c: Columns) -> Any:
    return v.get("E", 0.0) + v["A"] * c["params"] ** -v["alpha"] + v["B"] * c["tokens"] ** -v["beta"]


def _repeated(v: Mapping[str, Any], c: Columns) -> Any:
    """Muennighoff et al. 2023, Eqs. 5 and 6."""
    from analysis import repeated  # which fits by way of this package

    count = max(np.size(values) for values in v.values())
    laws = [repeated.law_of({name: float(np.broadcast_to(x, (count, 1))[k, 0]) for name, x in v.items()})
            for k in range(count)]  # fmt: skip
    found = np.array([repeated.predict(law, c["params"], c["tokens"], c["unique_tokens"]) for law in laws])
    return found if any(np.ndim(x) for x in v.values()) else found[0]


def _power(name: str, column: str) -> Callable[[Mapping[str, Any], Columns], Any]:
    unit = PF_DAY if column == "flops" else 1.0  # of C_c, as Kaplan prints it
    return lambda v, c: (v[f"{name}_c"] * unit / c[column]) ** v[f"alpha_{name}"]


def _kaplan_nd(v: Mapping[str, Any], c: Columns) -> Any:
    """Kaplan et al. 2020, Eq. 1.5."""
    size = (v["N_c"] / c["params"]) ** (v["alpha_N"] / v["alpha_D"])
    return (size + v["D_c"] / c["tokens"]) ** v["alpha_D"]


def _kaplan_ns(v: Mapping[str, Any], c: Columns) -> Any:
    """Kaplan et al. 2020, Eq. 5.6."""
    return (v["N_c"] / c["params"]) ** v["alpha_N"] + (v["S_c"] / c["steps_min"]) ** v["alpha_S"]


PREDICTORS: dict[str, Callable[[Mapping[str, Any], Columns], Any]] = {
    "power-law": lambda v, c: v["coefficient"] * c["x"] ** v["exponent"] + v.get("offset", 0.0),
    "parametric": _parametric,
    "repeated": _repeated,
    "kaplan-n": _power("N", "params"),
    "kaplan-d": _power("D", "tokens"),
    "kaplan-c": _power("C", "flops"),
    "kaplan-nd": _kaplan_nd,
    "kaplan-ns": _kaplan_ns,
}
