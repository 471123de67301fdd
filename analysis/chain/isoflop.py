"""From simulated sweeps to the isoflop section: frames, fits and their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import envelope as env
from analysis import isoflop as iso
from analysis.chain.frontier import read_sizes
from analysis.chain.readings import span_of
from analysis.chain.results import Isoflop
from analysis.minima import find_optima, per_token_at
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.tables.sizes import LEAST_SIZES, Size
from analysis.uncertainty import pivot
from analysis.uncertainty.bootstrap import Samples, band, estimate
from sweep.schema import InputError


def derive_isoflop(samples: Samples, sizes: Sequence[Size], warnings: Warnings) -> Isoflop:
    """From undecayed curves read at automatic budgets. Raises InputError for fewer than four sizes."""
    losses, index = read_sizes(samples, sizes)
    curves = [[(env.ln_compute(s, y, None), y) for s, y in zip(sizes, row, strict=True)] for row in losses]
    budgets = iso.choose_budgets(curves[0])
    values = np.exp([env.read_curves(row, budgets) for row in curves])
    rows = np.array([[i[min(int(np.searchsorted(x, b)), len(i) - 1)] for b in budgets]
                     for i, (x, _) in zip(index, curves[0], strict=True)])  # fmt: skip
    return _isoflop(
        samples.runs,
        [(s.group, s.params, s.flops_per_token) for s in sizes],
        budgets,
        values,
        rows,
        "undecayed",
        warnings,
    )


def derive_isoflop_decayed(samples: Samples, warnings: Warnings) -> Isoflop:
    """From the final losses of decayed runs, at the budgets at which runs of four or more sizes end. Raises InputError
    where there is none."""
    runs = samples.runs
    found = iso.decayed_budgets(runs)
    if not found:
        raise InputError(f"isoflop: no compute at which decayed runs of {LEAST_SIZES} or more sizes end; add runs")
    names = sorted({(run.params, run.group, run.flops_per_token) for run in runs})
    values = np.full((len(samples), len(names), len(found)), np.nan)
    rows = np.zeros((len(names), len(found)), dtype=int)
    single, edge, several = 0, 0, 0
    for b, (_, members) in enumerate(found):
        for s, (params, group, _) in enumerate(names):
            settings: dict[tuple[float, ...], list[int]] = {}
            for i in members:
                if (runs[i].params, runs[i].group) == (params, group):
                    settings.setdefault((runs[i].batch, *runs[i].setting), []).append(i)
            if settings:
                own = list(settings.values())
                means = np.array([np.mean([samples.last(i) for i in v], axis=0) for v in own])
                values[:, s, b], rows[s, b] = means.min(axis=0), own[int(means[:, 0].argmin())][0]
                best = runs[rows[s, b]]
                rates = [runs[v[0]].lr for v in own if runs[v[0]].batch == best.batch]
                single += len(rates) == 1
                several += len(rates) > 1
                edge += len(rates) > 1 and best.lr in (min(rates), max(rates))
    budgets = np.array([c for c, _ in found])
    labels = [(group, params, per_token) for params, group, per_token in names]
    section = _isoflop(runs, labels, budgets, np.exp(values), rows, "decayed", warnings)
    _warn_rates(single, several, edge, warnings)
    return section


def _warn_rates(single: int, several: int, edge: int, warnings: Warnings) -> None:
    """single, several: sizes at a budget with one learning rate and with more. edge: of the latter, those whose best is
    an end of its axis."""
    if edge:
        warnings.add(
            "isoflop", "lr_at_edge", f"at {edge} of {several} sizes and budgets with several learning rates the best "
            "one is an end of its axis: a better one may lie beyond"
        )  # fmt: skip
    if single:
        what = f"{single} of {single + several} sizes and budgets were" if several else "every size was"
        warnings.add(
            "isoflop", "one_rate", f"{what} run at one learning rate: nothing there shows that it is the best one"
        )  # fmt: skip


def _isoflop(
    runs: Sequence[Run],
    names: Sequence[tuple[str, float, float]],
    budgets: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    kind: str,
    warnings: Warnings,
) -> Isoflop:
    """names: group, N and FLOPs per token of each size. values: loss [samples, sizes, budgets]; rows: the runs they
    were read from."""
    params, per_token = np.array([(p, k) for _, p, k in names]).T
    ln_n, ln_k = np.log(params), np.log(per_token)
    optima = find_optima(ln_n, values)
    best = optima.of(0)
    flops = np.exp(budgets)
    points = pd.DataFrame(
        [
            (flops[b], group, n, flops[b] / k, values[0, s, b], runs[rows[s, b]].run_id)
            for b in range(len(flops))
            for s, (group, n, k) in enumerate(names)
            if np.isfinite(values[0, s, b])
        ],
        columns=["budget", "group", "params", "tokens", "loss", "run_id"],
    )
    low, high = band(optima.ln_n)
    frame = pd.DataFrame({"budget": flops, "params": np.exp(best.ln_n)})
    frame["params_low"], frame["params_high"] = np.exp(low), np.exp(high)
    frame["tokens"] = flops / np.exp(per_token_at(ln_n, ln_k, best.ln_n))
    frame["loss"] = best.value
    smallest = best.index == np.argmax(np.isfinite(values[0]), axis=0)
    frame["edge"] = np.where(best.interior, "interior", np.where(smallest, "smallest", "largest"))
    for i, name in enumerate(("c0", "c1", "c2")):
        frame[name] = best.coefficients[:, i]
    frame["fit_low"], frame["fit_high"], frame["used"] = params[best.first], params[best.last], best.used
    if not best.used.all():
        warnings.add(
            "isoflop", "optimum_at_edge", f"{int((~best.used).sum())} of {len(budgets)} budgets have no interior "
            "optimum; they are bounds and left out of the line"
        )  # fmt: skip
    columns = {name: points[name].to_numpy() for name in ("params", "tokens", "loss")}
    span = span_of(flops=points["budget"].to_numpy(), **columns)
    line = pd.DataFrame(columns=["flops", "params", "low", "high", "tokens"], dtype=float)
    if best.used.sum() < 2:
        return Isoflop(points, frame, None, line, kind)
    curvature, ln_k_opt = optima.coefficients[..., 2] / optima.value, per_token_at(ln_n, ln_k, optima.ln_n)
    found = iso.laws(budgets, optima.ln_n, np.log(optima.value), curvature, ln_k_opt)
    fits = {name: pivot.plain_value(name, v) for name, v in found.items()}
    estimates = {name: estimate(v) for name, v in fits.items()}
    at = np.linspace(budgets[best.used].min(), budgets[best.used].max(), 30)
    ln_line = np.log(fits["N_coefficient"])[:, None] + fits["a"][:, None] * at
    low, high = band(ln_line)
    line = pd.DataFrame({"flops": np.exp(at), "params": np.exp(ln_line[0]), "low": np.exp(low), "high": np.exp(high)})
    line["tokens"] = estimates["D_coefficient"].value * line["flops"] ** estimates["b"].value
    draws = {name: v[1:] for name, v in fits.items() if len(v) > 1}
    return Isoflop(points, frame, estimates, line, kind, draws, span)
