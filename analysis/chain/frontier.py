"""From simulated sweeps to the frontier and isoflop sections: frames, fits and their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import envelope as env
from analysis import isoflop as iso
from analysis.chain.results import Frontier, Isoflop
from analysis.minima import Optima, find_optima, per_token_at
from analysis.outcome import Warnings
from analysis.power_law import PowerLaw
from analysis.tables.runs import Run
from analysis.tables.sizes import LEAST_SIZES, Size, size_curves
from analysis.uncertainty import pivot
from analysis.uncertainty.bootstrap import Samples, band, estimate
from sweep.schema import InputError

EVERYWHERE = (1e-300, 1e300)  # losses
QUANTITIES = ("N", "D", "S", "B", "L")
Curves = list[list[np.ndarray]]


def read_sizes(samples: Samples, sizes: Sequence[Size]) -> tuple[Curves, list[np.ndarray]]:
    """ln L of each size in every sample [samples][sizes][x], and the runs the first sample's stand for."""
    pairs = [size_curves(samples, size) for size in sizes]
    return [[values[k] for values, _ in pairs] for k in range(len(samples))], [index for _, index in pairs]


def derive_frontier(
    samples: Samples,
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
    warnings: Warnings,
) -> Frontier:
    """Both kinds, the adjusted one where there is a law of B_crit and the runs are undecayed; it is confined to the
    losses `measured` (lowest, highest) at which B_crit is known. Raises InputError for fewer than four sizes."""
    if len(sizes) < LEAST_SIZES:
        raise InputError(
            f"frontier: {len(sizes)} model sizes with comparable runs do not determine N(C); "
            f"give at least {LEAST_SIZES}"
        )
    losses, index = read_sizes(samples, sizes)
    parts = {"raw": _derive_kind("raw", samples.runs, sizes, losses, index, batch, None, EVERYWHERE, warnings)}
    if law is not None and not sizes[0].decayed:
        part = _derive_kind("adjusted", samples.runs, sizes, losses, index, batch, law, measured, warnings)
        parts["adjusted"] = part
    fits = {kind: part[2] for kind, part in parts.items() if part[2]}
    lines = [part[3] for part in parts.values()]
    return Frontier(
        batch_tokens=None if batch is None else int(batch),
        optima=pd.concat([part[0] for part in parts.values()], ignore_index=True),
        curves=pd.concat([part[1] for part in parts.values()], ignore_index=True),
        fits=fits,
        lines=pd.concat(lines, ignore_index=True),
        shares=_shares(fits, lines[-1]) if "adjusted" in fits else _no_shares(),
    )


def _derive_kind(
    kind: str,
    runs: Sequence[Run],
    sizes: Sequence[Size],
    losses: Curves,
    index: list[np.ndarray],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
    warnings: Warnings,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, PowerLaw], pd.DataFrame]:
    """Optima, curves, fits and lines of one kind."""
    ln_n, ln_k = np.log([(size.params, size.flops_per_token) for size in sizes]).T
    laws = [None] * len(losses) if law is None else [(float(k), float(s)) for k, s in law]
    lowest, highest = np.log(measured)
    curves = [
        [(env.ln_compute(size, y, own), np.where(y <= highest, y, np.nan)) for size, y in zip(sizes, row, strict=True)]
        for row, own in zip(losses, laws, strict=True)
    ]
    grid = env.compute_grid(curves[0], lowest)
    values = [env.read_curves(row, grid) for row in curves]
    optima = [find_optima(ln_n, v, env.FACTOR) for v in values]
    frame = _optima_frame(kind, runs, sizes, index, curves[0], grid, values[0], optima, laws[0], batch)
    curve_frame = pd.concat(
        [
            pd.DataFrame({"kind": kind, "params": s.params, "group": s.group, "flops": np.exp(x), "loss": np.exp(y)})[
                np.isfinite(x) & np.isfinite(y)
            ]
            for s, (x, y) in zip(sizes, curves[0], strict=True)
        ],
        ignore_index=True,
    )
    at = grid[optima[0].interior]
    no_line = pd.DataFrame(columns=["kind", "quantity", "flops", "value", "low", "high"])
    surfaces = [env.fit_surface(ln_n, grid, v, o) for v, o in zip(values, optima, strict=True)]
    if not np.isfinite(surfaces[0]).all():
        warnings.add(
            "frontier", "optimum_at_edge", f"{kind}: the best size is the smallest or largest at all but {len(at)} "
            "compute values, which are bounds; N(C) is not fitted. Add sizes on that side"
        )  # fmt: skip
        return frame, curve_frame, {}, no_line
    if len(at) < len(grid):
        warnings.add(
            "frontier", "optimum_at_edge", f"{kind}: at {len(grid) - len(at)} of {len(grid)} compute values the best "
            "size is the smallest or largest; these are bounds and left out of the fits"
        )  # fmt: skip
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in QUANTITIES}
    for k, own in zip(surfaces, laws, strict=True):
        best_n, best_l = env.surface_optimum(k, ln_n, grid, at)
        fitted = env.fit_lines(at, env.quantities(at, best_n, per_token_at(ln_n, ln_k, best_n), best_l, batch, own))
        for name in QUANTITIES:
            lines[name].append(fitted[name])
    coefficients = {name: np.array(rows) for name, rows in lines.items()}
    fits, frames = {}, []
    for name, k in coefficients.items():
        if np.isfinite(k[0]).all():
            fits[name] = PowerLaw(estimate(np.exp(k[:, 0])), estimate(k[:, 1]))
            frames.append(_line_frame(kind, name, k, at))
    return frame, curve_frame, fits, pd.concat(frames, ignore_index=True)


def _line_frame(kind: str, name: str, k: np.ndarray, at: np.ndarray) -> pd.DataFrame:
    ln_c = np.linspace(at.min(), at.max(), 30)
    values = np.exp(k[:, :1] + k[:, 1:] * ln_c)
    low, high = band(values)
    return pd.DataFrame(
        {"kind": kind, "quantity": name, "flops": np.exp(ln_c), "value": values[0], "low": low, "high": high}
    )


def _optima_frame(
    kind: str,
    runs: Sequence[Run],
    sizes: Sequence[Size],
    index: list[np.ndarray],
    curves: list[tuple[np.ndarray, np.ndarray]],
    grid: np.ndarray,
    values: np.ndarray,
    optima: list[Optima],
    law: tuple[float, float] | None,
    batch: float | None,
) -> pd.DataFrame:
    best = optima[0]
    sizes_at = np.array([size.params for size in sizes])[best.index]
    ln_sizes, ln_k = np.log([(size.params, size.flops_per_token) for size in sizes]).T
    envelope = values[best.index, np.arange(len(grid))]
    ln_n = np.where(best.used, best.ln_n, np.log(sizes_at))
    ln_l = np.where(best.used, best.value, envelope)
    logs = env.quantities(grid, ln_n, per_token_at(ln_sizes, ln_k, ln_n), ln_l, batch, law)
    low, high = band(np.array([o.ln_n for o in optima]))
    positions = [int(np.searchsorted(curves[s][0], c)) for s, c in zip(best.index, grid, strict=True)]
    run_ids = [runs[index[s][min(p, len(index[s]) - 1)]].run_id for s, p in zip(best.index, positions, strict=True)]
    first = np.argmax(np.isfinite(values), axis=0)
    frame = pd.DataFrame({"kind": kind, "flops": np.exp(grid), "params": np.exp(best.ln_n)})
    frame["params_low"], frame["params_high"] = np.exp(low), np.exp(high)
    frame["params_run"], frame["run_id"], frame["loss"] = sizes_at, run_ids, np.exp(envelope)
    frame["steps"], frame["tokens"], frame["batch_tokens"] = np.exp(logs["S"]), np.exp(logs["D"]), np.exp(logs["B"])
    frame["edge"] = np.where(best.interior, "interior", np.where(best.index == first, "smallest", "largest"))
    frame["used"] = best.used
    return frame


def _no_shares() -> pd.DataFrame:
    return pd.DataFrame(columns=["quantity", "exponent", "low", "high", "factor", "flops_low", "flops_high"])


def _shares(fits: dict[str, dict[str, PowerLaw]], lines: pd.DataFrame) -> pd.DataFrame:
    """C_min = k B_crit S_min, so the exponents of N, B and S sum to one where k = 6 N."""
    low, high = lines["flops"].min(), lines["flops"].max()
    rows = []
    for name in ("N", "B", "S"):
        e = fits["adjusted"][name].exponent
        rows.append((name, e.value, e.low, e.high, (high / low) ** e.value, low, high))
    return pd.DataFrame(rows, columns=list(_no_shares().columns))


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
    for b, (_, members) in enumerate(found):
        for s, (params, group, _) in enumerate(names):
            settings: dict[tuple[float, ...], list[int]] = {}
            for i in members:
                if (runs[i].params, runs[i].group) == (params, group):
                    settings.setdefault((runs[i].batch, *runs[i].setting), []).append(i)
            if settings:
                own = list(settings.values())
                means = np.array([np.mean([samples.ln_loss(i)[:, -1] for i in v], axis=0) for v in own])
                values[:, s, b], rows[s, b] = means.min(axis=0), own[int(means[:, 0].argmin())][0]
    budgets = np.array([c for c, _ in found])
    labels = [(group, params, per_token) for params, group, per_token in names]
    return _isoflop(runs, labels, budgets, np.exp(values), rows, "decayed", warnings)


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
    optima = [find_optima(ln_n, v) for v in values]
    best = optima[0]
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
    low, high = band(np.array([o.ln_n for o in optima]))
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
    span = _span(points.rename(columns={"budget": "flops"}))
    line = pd.DataFrame(columns=["flops", "params", "low", "high", "tokens"], dtype=float)
    if best.used.sum() < 2:
        return Isoflop(points, frame, None, line, kind)
    ln_opt, ln_l = np.array([o.ln_n for o in optima]), np.log([o.value for o in optima])
    curvature = np.array([o.coefficients[:, 2] for o in optima]) / np.exp(ln_l)
    found = iso.laws(budgets, ln_opt, ln_l, curvature, per_token_at(ln_n, ln_k, ln_opt))
    fits = {name: pivot.plain_value(name, v) for name, v in found.items()}
    estimates = {name: estimate(v) for name, v in fits.items()}
    at = np.linspace(budgets[best.used].min(), budgets[best.used].max(), 30)
    ln_line = np.log(fits["N_coefficient"])[:, None] + fits["a"][:, None] * at
    low, high = band(ln_line)
    line = pd.DataFrame({"flops": np.exp(at), "params": np.exp(ln_line[0]), "low": np.exp(low), "high": np.exp(high)})
    line["tokens"] = estimates["D_coefficient"].value * line["flops"] ** estimates["b"].value
    draws = {name: v[1:] for name, v in fits.items() if len(v) > 1}
    return Isoflop(points, frame, estimates, line, kind, draws, span)


def _span(points: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of what was read."""
    found = [name for name in ("flops", "params", "tokens", "loss") if name in points]
    return {name: (float(points[name].min()), float(points[name].max())) for name in found}
