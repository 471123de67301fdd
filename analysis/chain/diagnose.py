"""Diagnoses of a sweep's laws: what the parametric law leaves, how it and the isoflop line do on the largest compute
when fitted without it, and which run or size moves each exponent of N_opt most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd

from analysis import parametric
from analysis.chain.frontier import derive_frontier
from analysis.chain.results import Frontier, Isoflop, Laws, Parametric
from analysis.minima import find_optima
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.power_law import line
from analysis.tables.runs import Run
from analysis.tables.sizes import Size
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.diagnostics import Diagnosis
from analysis.uncertainty.holdout import HoldOut, hold_out
from analysis.uncertainty.influence import Influence, influence, parametric_refit, start_at
from analysis.uncertainty.residuals import residuals
from sweep.schema import InputError

T = TypeVar("T")

HELD = 0.25  # of the range of ln C: the uppermost part is held out
MOST_RUNS = 300  # of which each is left out; where there are more, each size
MOST_SIZES = 40  # of which each is left out; where there are more, neighbours together
_EVERY = 500  # of the paper's 4,500 starts, for a hold-out beside the fit to all points


def diagnose_laws(
    laws: Laws,
    samples: Samples,
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
    sigma: float,
    device: str = "cpu",
) -> dict[str, Diagnosis]:
    """By "parametric", "isoflop", and the frontier's kinds "raw" and "adjusted", of the laws that there are. Their
    warnings are added to the laws'.

    samples, sizes, batch, law, measured: what `derive_frontier` was given. sigma: seed noise of ln(loss). device:
    where the parametric law is fitted again.
    """
    found = {}
    if laws.parametric is not None:
        found["parametric"] = _parametric(laws.parametric, sigma, device)
    if laws.isoflop is not None and laws.isoflop.fit is not None:
        found["isoflop"] = Diagnosis(
            None, _isoflop_sizes(laws.isoflop, laws.isoflop.fit["a"]), _isoflop_held(laws.isoflop)
        )
    if laws.frontier is not None:
        own = None if law is None else law[:1]
        for kind, part in _frontier(laws.frontier, samples.runs, sizes, batch, own, measured).items():
            found[kind] = Diagnosis(None, part, None)
    for name, diagnosis in found.items():
        diagnosis.warn("frontier" if name in ("raw", "adjusted") else name, laws.warnings)
    return found


def _parametric(section: Parametric, sigma: float, device: str) -> Diagnosis:
    points = section.points
    run = points["run_id"].to_numpy().astype(str)
    columns = {name: points[name].to_numpy(dtype=float) for name in ("params", "tokens", "loss")}
    columns["flops"] = 6 * columns["params"] * columns["tokens"]
    left = residuals(np.log(columns["loss"] / points["fitted"].to_numpy(dtype=float)), columns, run=run, sigma=sigma)
    own = columns["params"], columns["tokens"], columns["loss"]
    refit = parametric_refit(*own, section.estimates, device=device)
    labels = run if len(np.unique(run)) <= MOST_RUNS else points["group"].to_numpy().astype(str)
    moved = _possible(lambda: influence(refit, labels, section.estimates["a"], quantities=columns))
    begin = np.concatenate([start_at(section.estimates), parametric.starts()[::_EVERY]])

    def fit(rows: np.ndarray) -> Outcome:
        part = {name: columns[name][rows] for name in ("params", "tokens", "loss")}
        theta = parametric.fit_parametric(**part, from_starts=begin, device=device).parameters
        values = {name: Estimate(float(v[0])) for name, v in parametric.constants(theta).items()}
        return Outcome("parametric", values, int(rows.sum()))

    ln_c = np.log(columns["flops"])
    above = float(np.exp(ln_c.max() - HELD * np.ptp(ln_c)))
    return Diagnosis(left, moved, _possible(lambda: hold_out(fit, columns, above)))


def _isoflop_held(section: Isoflop) -> HoldOut | None:
    """The line through the lower budgets' optima against the upper ones."""
    used = section.optima[section.optima["used"].astype(bool)]
    flops, params = used["budget"].to_numpy(dtype=float), used["params"].to_numpy(dtype=float)

    def fit(rows: np.ndarray) -> Outcome:
        if rows.sum() < 2:
            raise InputError("isoflop: one optimum makes no line")
        return _line(flops[rows], params[rows], used)

    above = float(np.exp(np.log(flops.max()) - HELD * np.ptp(np.log(flops))))
    return _possible(lambda: hold_out(fit, {"flops": flops}, above))


def _line(flops: np.ndarray, params: np.ndarray, optima: pd.DataFrame) -> Outcome:
    intercept, slope = line(np.log(flops), np.log(params))
    values = {"a": Estimate(slope), "N_coefficient": Estimate(float(np.exp(intercept)))}
    return Outcome("isoflop", values, len(flops), frames={"optima": optima})


def _isoflop_sizes(section: Isoflop, estimate: Estimate) -> Influence | None:
    """The line without each size, at the same budgets."""
    table = section.points.pivot_table(index=["params", "group"], columns="budget", values="loss")
    ln_n = np.log(table.index.get_level_values("params").to_numpy(dtype=float))
    ln_c, values = np.log(table.columns.to_numpy(dtype=float)), table.to_numpy(dtype=float)

    def refit(keep: np.ndarray) -> np.ndarray:
        return np.array([line(ln_c, find_optima(ln_n[rows], values[rows]).ln_n)[1] for rows in keep])

    labels = table.index.get_level_values("group").to_numpy().astype(str)
    return _possible(lambda: influence(refit, labels, estimate, quantities={"params": np.exp(ln_n)}))


def _frontier(
    section: Frontier,
    runs: Sequence[Run],
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
) -> dict[str, Influence]:
    """The exponent of N of each kind without each size, or each few neighbours."""
    parts: dict[bytes, Frontier | None] = {}  # one refit serves both kinds
    alone = Samples(runs)

    def without(rows: np.ndarray) -> Frontier | None:
        kept = [size for size, keep in zip(sizes, rows, strict=True) if keep]
        return _possible(lambda: derive_frontier(alone, kept, batch, law, measured, Warnings()))

    def refit(keep: np.ndarray, kind: str) -> np.ndarray:
        values = []
        for rows in keep:
            if rows.tobytes() not in parts:
                parts[rows.tobytes()] = without(rows)
            part = parts[rows.tobytes()]
            values.append(part.fits[kind]["N"].exponent.value if part is not None and kind in part.fits else np.nan)
        return np.array(values)

    labels = _neighbours(sizes)
    params = {"params": np.array([size.params for size in sizes])}
    return {
        kind: influence(partial(refit, kind=kind), labels, fits["N"].exponent, quantities=params)
        for kind, fits in section.fits.items()
    }


def _neighbours(sizes: Sequence[Size]) -> np.ndarray:
    """Labels of what is left out at once: each size, or where they are many, `MOST_SIZES` groups of neighbours."""
    if len(sizes) <= MOST_SIZES:
        return np.array([size.group for size in sizes])
    groups = np.array_split(np.array([size.params for size in sizes]), MOST_SIZES)
    return np.concatenate([np.full(len(n), f"N = {n[0]:.4g} to {n[-1]:.4g}") for n in groups])


def _possible(make: Callable[[], T]) -> T | None:
    """None where too little is left."""
    try:
        return make()
    except InputError:
        return None
