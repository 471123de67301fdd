"""How much of an exponent hangs on one run: the law refitted without each of them.

The few runs that move an exponent most are found by leaving each out in turn; the runs of the largest shifts in one
direction are then left out together, which approximates the most harmful small set of them (Broderick, Giordano &
Meager 2020, arXiv 2011.14999): outliers can hide behind each other when only one is left out.

    from analysis.uncertainty.influence import influence, one_by_one
    refit = one_by_one(lambda rows: power_law.fit(x[rows], y[rows]), "exponent")
    found = influence(refit, np.arange(len(x)), law.estimates["exponent"], name="exponent")
    print(found.runs.head(), found.findings)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis import engine, parametric
from analysis.outcome import Estimate, Outcome, plain
from sweep.schema import InputError

SHARE = 0.02  # of the runs that are left out together
CARRIES, CARRY = 2.0, 1.5  # standard errors: shifts that one run, and `SHARE` of them together, should not make
MANY = 8  # runs: of fewer, each carries the estimate
KEPT_ROWS = 20  # of the table, in JSON
# What a law is judged by, where it has no exponent `a` of N_opt. Eq. 1.5 and repeated data take too long to refit for
# each run.
EXPONENTS = {
    "power-law": "exponent",
    "kaplan-n": "alpha_N",
    "kaplan-d": "alpha_D",
    "kaplan-c": "alpha_C",
    "kaplan-ns": "alpha_N",
}

Refit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Influence:
    """The estimate `name` without each run, the largest shift first.

    se: of the estimate, from its own interval, or from the leave-one-out values (`se_source` "fit" or "jackknife").
    runs: columns run, points, the means of the described quantities, without (the estimate; nan where the law cannot be
    fitted without the run), shift, shift_se (in standard errors). together: the runs left out at once and the estimate
    then, None where that would be one run. findings: what a reader should know, in words.
    """

    name: str
    value: float
    se: float
    se_source: str
    runs: pd.DataFrame
    together: dict[str, Any] | None
    findings: list[str] = field(default_factory=list)

    @property
    def carried(self) -> bool:
        """Whether one of many runs, or a few together, move the estimate more than chance lets them."""
        if len(self.runs) < MANY:
            return False
        few = 0.0 if self.together is None else abs(self.together["shift_se"])
        return bool(self.runs["shift_se"].abs().max() >= CARRIES or few >= CARRY)

    def to_json(self) -> dict[str, Any]:
        """Plain data, of the most influential runs only."""
        out = {name: getattr(self, name) for name in ("name", "value", "se", "se_source", "together", "findings")}
        return plain({**out, "runs": self.runs.head(KEPT_ROWS).to_dict("records")})


def influence(
    refit: Refit,
    run: np.ndarray,
    estimate: Estimate,
    *,
    name: str = "a",
    quantities: Mapping[str, np.ndarray] | None = None,
) -> Influence:
    """Refit without each of the labels `run` [n]; integers are row numbers.

    refit: rows to keep [k, n] -> the estimate `name` of each [k], nan where there is none (`one_by_one`,
    `parametric_refit`). estimate: of all rows. quantities: params, tokens, loss, ... [n], to say what a run is.

    Raises InputError for fewer than three runs.
    """
    names, labels = np.unique(np.asarray(run), return_inverse=True)
    names = np.array([f"row {name}" if isinstance(name, np.integer) else str(name) for name in names], dtype=object)
    if len(names) < 3:
        raise InputError(f"influence: {len(names)} runs are too few to leave one out; give at least 3")
    without = np.asarray(refit(labels[None, :] != np.arange(len(names))[:, None]), dtype=float)
    shift = without - estimate.value
    se, source = (estimate.se, "fit") if estimate.se else (_jackknife(without), "jackknife")
    count = np.bincount(labels)
    frame = pd.DataFrame({"run": names, "points": count})
    for column, values in (quantities or {}).items():
        logs = np.bincount(labels, np.log(np.asarray(values, dtype=float)))
        frame[column] = np.exp(logs / count)
    frame["without"], frame["shift"], frame["shift_se"] = without, shift, shift / se if se else np.nan
    together = _together(refit, labels, names, shift, estimate.value, se)
    order = np.argsort(-np.abs(np.where(np.isfinite(shift), shift, np.inf)), kind="stable")
    found = Influence(name, estimate.value, se, source, frame.iloc[order].reset_index(drop=True), together)
    found.findings.extend(_findings(found))
    return found


def one_by_one(fit: Callable[[np.ndarray], Outcome], name: str) -> Refit:
    """Refits by a law's own function: boolean rows [n] -> Outcome."""

    def refit(keep: np.ndarray) -> np.ndarray:
        values = np.full(len(keep), np.nan)
        for k, rows in enumerate(keep):
            try:
                found = fit(rows).estimates
            except InputError:  # too little is left
                continue
            if name in found:
                values[k] = found[name].value
        return values

    return refit


def parametric_refit(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    estimates: Mapping[str, Estimate],
    *,
    name: str = "a",
    weights: np.ndarray | None = None,
    kind: engine.Loss = "huber",
    delta: float = parametric.DELTA,
    device: str = "cpu",
) -> Refit:
    """All refits of L = E + A/N^alpha + B/D^beta as one batch of weights, from the fit to all rows [n]."""
    start = start_at(estimates)
    own = np.ones(len(loss)) if weights is None else np.asarray(weights, dtype=float)

    def refit(keep: np.ndarray) -> np.ndarray:
        found = parametric.fit_parametric(
            params, tokens, np.broadcast_to(loss, keep.shape), weights=keep * own,
            from_starts=start, kind=kind, delta=delta, device=device,
        )  # fmt: skip
        return np.where(found.converged, parametric.constants(found.parameters)[name], np.nan)

    return refit


def start_at(estimates: Mapping[str, Estimate]) -> np.ndarray:
    """[1, 5] (ln A, alpha, ln B, beta, ln E) of a parametric law, [1, 4] of one without an offset."""
    ln = {name: math.log(max(estimates[name].value, 1e-300)) for name in ("A", "B", "E") if name in estimates}
    theta = [ln["A"], estimates["alpha"].value, ln["B"], estimates["beta"].value]
    return np.array([[*theta, ln["E"]] if "E" in ln else theta])


def _jackknife(without: np.ndarray) -> float:
    good = without[np.isfinite(without)]
    return math.sqrt((len(good) - 1) / max(1, len(good)) * float(((good - good.mean()) ** 2).sum()))


def _together(
    refit: Refit, labels: np.ndarray, names: np.ndarray, shift: np.ndarray, value: float, se: float
) -> dict[str, Any] | None:
    """The `SHARE` of runs with the largest shifts of one sign, left out at once."""
    number = math.ceil(SHARE * len(names))
    if number < 2:
        return None
    known = np.nan_to_num(shift)
    order = np.argsort(known)
    sets = order[:number], order[::-1][:number]
    chosen = max(sets, key=lambda members: abs(float(known[members].sum())))
    without = float(refit(~np.isin(labels, chosen)[None, :])[0])
    moved = without - value
    return {
        "runs": names[chosen].tolist(), "without": without, "shift": moved, "shift_se": moved / se if se else math.nan,
    }  # fmt: skip


def _findings(found: Influence) -> list[str]:
    frame, out = found.runs, []
    lost = frame[frame["without"].isna()]
    if len(lost):
        out.append(f"without {', '.join(map(str, lost['run'][:3]))} the law cannot be fitted")
    known = frame[frame["without"].notna()]
    if len(known):
        first = known.iloc[0]
        what = ", ".join(f"{symbol} {first[column]:.3g}" for column, symbol in
                         (("params", "N"), ("tokens", "D"), ("loss", "loss")) if column in known)  # fmt: skip
        out.append(
            first["run"] + (f" ({what})" if what else "") + f" moves {found.name} most: {found.value:.3f} becomes "
            f"{first['without']:.3f} without it ({first['shift_se']:+.1f} standard errors)"
        )
    if found.together is not None:
        few = found.together
        out.append(
            f"the {len(few['runs'])} runs that move it most in one direction ({SHARE:.0%}) together: "
            f"{found.value:.3f} becomes {few['without']:.3f} ({few['shift_se']:+.1f} standard errors)"
        )
    return out
