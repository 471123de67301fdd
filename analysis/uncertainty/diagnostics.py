"""Everything that speaks for or against one fit: hold-out, residuals, influence of each run.

    from analysis.uncertainty.diagnostics import diagnose
    def fit(rows):                                   # boolean rows -> the law fitted to them, without intervals
        return parametric.fit(n[rows], d[rows], loss[rows])
    found = diagnose(law, fit, {"params": n, "tokens": d, "loss": loss}, above=1e21)
    print("\\n".join(found.lines()))
    found.warn(law.law, law.warnings)

The parts are `analysis.uncertainty.holdout`, `residuals` and `influence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.outcome import Outcome, Warnings
from analysis.uncertainty.holdout import Columns, Fit, HoldOut, hold_out
from analysis.uncertainty.influence import EXPONENTS, Influence, Refit, influence, one_by_one
from analysis.uncertainty.residuals import Residuals, residuals_of

MOST_REFITS = 300  # where there are more runs, each size is left out instead
LEAST_RUNS = 3
DESCRIBING = ("params", "tokens", "flops", "loss")


@dataclass(frozen=True)
class Diagnosis:
    """The parts that this law and table support; None for the others."""

    residuals: Residuals | None
    influence: Influence | None
    hold_out: HoldOut | None

    def to_json(self) -> dict[str, Any]:
        """Plain data of the parts there are."""
        return {name: part.to_json() for name, part in vars(self).items() if part is not None}

    def lines(self) -> list[str]:
        """What was found, one line each, for a terminal."""
        out = []
        if self.residuals is not None:
            noise = "" if self.residuals.ratio is None else f", {self.residuals.ratio:.1f} times the seed noise"
            out.append(
                f"residuals   rms {self.residuals.rms:.2%}, largest {self.residuals.largest:+.1%} of the loss{noise}"
            )
            out += [f"            {text}" for text in self.residuals.findings]
        if self.influence is not None:
            out += [f"{'influence' if not k else '':<12}{text}" for k, text in enumerate(self.influence.findings)]
        if self.hold_out is not None:
            out.append(f"hold-out    {self.hold_out.text()}")
        return out

    def warn(self, law: str, warnings: Warnings) -> None:
        """What a reader must know before using the law: patterns in the residuals, an estimate that hangs on few
        runs."""
        if self.residuals is not None and self.residuals.findings:
            warnings.add(law, "residuals", "; ".join(self.residuals.findings))
        if self.influence is not None and self.influence.carried:
            warnings.add(law, "influence", "; ".join(self.influence.findings))


def diagnose(
    law: Outcome,
    fit: Fit,
    columns: Columns,
    *,
    run: np.ndarray | None = None,
    refit: Refit | None = None,
    sigma: float | None = None,
    above: float | None = None,
) -> Diagnosis:
    """Diagnose a law that was fitted to all rows.

    fit: boolean rows [n] -> the law fitted to these rows by the same function and options, without intervals.
    columns: what it was given, [n] each, by the names of `holdout.hold_out`. run: labels [n] of the points of one
    training run; without, each row is a run, and of a frontier each size is left out at once, as of very many runs.
    refit: all leave-one-out refits in one batch (`influence.parametric_refit`). sigma: seed noise of ln(loss). above:
    hold out C >= `above` FLOP.

    Raises InputError where a hold-out is asked for and not possible.
    """
    held = None if above is None else hold_out(fit, columns, above, whole=law)
    return Diagnosis(residuals_of(law, run=run, sigma=sigma), _influence(law, fit, columns, run, refit), held)


def _influence(
    law: Outcome, fit: Fit, columns: Columns, run: np.ndarray | None, refit: Refit | None
) -> Influence | None:
    name = "a" if "a" in law.estimates else EXPONENTS.get(law.law, "")
    if name not in law.estimates:
        return None
    labels = _labels(law.law, columns, run)
    if not LEAST_RUNS <= len(np.unique(labels)) <= MOST_REFITS:
        return None
    described: Mapping[str, np.ndarray] = {c: columns[c] for c in DESCRIBING if c in columns}
    return influence(refit or one_by_one(fit, name), labels, law.estimates[name], name=name, quantities=described)


def _labels(law: str, columns: Columns, run: np.ndarray | None) -> np.ndarray:
    labels = np.arange(len(next(iter(columns.values())))) if run is None else np.asarray(run)
    many = len(np.unique(labels)) > MOST_REFITS or (law == "frontier" and run is None)
    return np.array([f"N={params:.4g}" for params in columns["params"]]) if many and "params" in columns else labels
