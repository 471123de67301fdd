"""From simulated sweeps to the frontier section: frames, fits and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import envelope as env
from analysis.chain.readings import span_of
from analysis.chain.results import Draws, Frontier, Span, exponent_name
from analysis.minima import Optima, find_optima, per_token_at
from analysis.outcome import Estimate, Warnings
from analysis.power_law import PowerLaw
from analysis.tables.runs import Run
from analysis.tables.sizes import LEAST_SIZES, Size, size_curves
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
    kinds = {"raw": _derive_kind("raw", samples.runs, sizes, losses, index, batch, None, EVERYWHERE, warnings)}
    if law is not None and not sizes[0].decayed:
        own = _derive_kind("adjusted", samples.runs, sizes, losses, index, batch, law, measured, warnings)
        kinds["adjusted"] = own
    fitted = {name: kind for name, kind in kinds.items() if kind.fits}
    lines = [kind.lines for kind in kinds.values()]
    return Frontier(
        batch_tokens=None if batch is None else int(batch),
        optima=pd.concat([kind.optima for kind in kinds.values()], ignore_index=True),
        curves=pd.concat([kind.curves for kind in kinds.values()], ignore_index=True),
        fits={name: kind.fits for name, kind in fitted.items()},
        lines=pd.concat(lines, ignore_index=True),
        shares=_shares(fitted["adjusted"].fits, lines[-1]) if "adjusted" in fitted else _no_shares(),
        curvature={name: kind.estimates["curvature"] for name, kind in fitted.items()},
        draws={name: kind.draws for name, kind in fitted.items() if kind.draws},
        span={name: kind.span for name, kind in fitted.items()},
        envelope={name: kind.envelope for name, kind in fitted.items()},
    )


def _no_lines() -> pd.DataFrame:
    return pd.DataFrame(columns=["kind", "quantity", "flops", "value", "low", "high"])


@dataclass(frozen=True)
class _Kind:
    """What is found against C or C_min; all but optima and curves is empty where nothing could be fitted."""

    optima: pd.DataFrame
    curves: pd.DataFrame
    fits: dict[str, PowerLaw] = field(default_factory=dict)
    lines: pd.DataFrame = field(default_factory=_no_lines)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    draws: Draws = field(default_factory=dict)
    span: Span = field(default_factory=dict)
    envelope: dict[str, Estimate] = field(default_factory=dict)


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
) -> _Kind:
    ln_n, ln_k = _shapes(sizes)
    laws = [None] * len(losses) if law is None else [(float(k), float(s)) for k, s in law]
    lowest, highest = np.log(measured)
    curves = [
        [(env.ln_compute(size, y, own), np.where(y <= highest, y, np.nan)) for size, y in zip(sizes, row, strict=True)]
        for row, own in zip(losses, laws, strict=True)
    ]
    grid = env.compute_grid(curves[0], lowest)
    values = np.array([env.read_curves(row, grid) for row in curves])
    optima = find_optima(ln_n, values, env.FACTOR)
    best = optima.of(0)
    frame = _optima_frame(kind, runs, sizes, index, curves[0], grid, values[0], optima, laws[0], batch)
    shown = pd.concat(
        [
            pd.DataFrame({"kind": kind, "params": s.params, "group": s.group, "flops": np.exp(x), "loss": np.exp(y)})[
                np.isfinite(x) & np.isfinite(y)
            ]
            for s, (x, y) in zip(sizes, curves[0], strict=True)
        ],
        ignore_index=True,
    )
    surfaces = env.fit_surface(ln_n, grid, values, optima)
    at = grid[best.interior]
    _warn_edges(kind, len(at), len(grid), bool(np.isfinite(surfaces[0]).all()), warnings)
    if not np.isfinite(surfaces[0]).all():
        return _Kind(frame, shown)
    lines = _fit_lines(surfaces, ln_n, ln_k, grid, at, law, batch)
    found = {"curvature": surfaces[:, 2]}
    for name, k in lines.items():
        found |= {exponent_name(name): k[:, 1], f"{name}_coefficient": np.exp(k[:, 0])}
    estimates = {name: estimate(v) for name, v in found.items()}
    draws = {name: v[1:] for name, v in found.items() if len(v) > 1}
    least = np.exp(values[0][best.index, np.arange(len(grid))][best.interior])
    return _Kind(
        optima=frame,
        curves=shown,
        fits={name: PowerLaw(estimates[f"{name}_coefficient"], estimates[exponent_name(name)]) for name in lines},
        lines=pd.concat([_line_frame(kind, name, k, at) for name, k in lines.items()], ignore_index=True),
        estimates=estimates,
        draws=draws,
        span=span_of(flops=np.exp(at), loss=least, params=np.exp(ln_n)),
        envelope=_fit_envelope(curves, ln_n, ln_k, grid, law),
    )


def _shapes(sizes: Sequence[Size]) -> tuple[np.ndarray, np.ndarray]:
    """ln N and the logarithm of the FLOPs per token."""
    ln_n, ln_k = np.log([(size.params, size.flops_per_token) for size in sizes]).T
    return ln_n, ln_k


def _warn_edges(kind: str, interior: int, number: int, fitted: bool, warnings: Warnings) -> None:
    if not fitted:
        warnings.add(
            "frontier", "optimum_at_edge", f"{kind}: the best size is the smallest or largest at all but {interior} "
            "compute values, which are bounds; N(C) is not fitted. Add sizes on that side"
        )  # fmt: skip
    elif interior < number:
        warnings.add(
            "frontier", "optimum_at_edge", f"{kind}: at {number - interior} of {number} compute values the best "
            "size is the smallest or largest; these are bounds and left out of the fits"
        )  # fmt: skip


def _fit_lines(
    surfaces: np.ndarray,
    ln_n: np.ndarray,
    ln_k: np.ndarray,
    grid: np.ndarray,
    at: np.ndarray,
    law: np.ndarray | None,
    batch: float | None,
) -> dict[str, np.ndarray]:
    """Intercept and exponent [samples, 2] of each of `QUANTITIES` that the runs themselves determine."""
    best_n, best_l = env.surface_optimum(surfaces, grid, at)
    own = None if law is None else (law[:, :1], law[:, 1:])
    lines = env.fit_lines(at, env.quantities(at, best_n, per_token_at(ln_n, ln_k, best_n), best_l, batch, own))
    return {name: lines[name] for name in QUANTITIES if np.isfinite(lines[name][0]).all()}


def _fit_envelope(
    curves: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    ln_n: np.ndarray,
    ln_k: np.ndarray,
    grid: np.ndarray,
    law: np.ndarray | None,
) -> dict[str, Estimate]:
    """a, b and coefficients of the lines through the best of the sizes (`env.envelope_lines`), for comparison."""
    at = env.dense(grid)
    pairs = [None] * len(curves) if law is None else [(float(k), float(s)) for k, s in law]
    # One sample at a time: so many compute values of all at once would fill the memory.
    rows = [env.envelope_lines(ln_n, ln_k, at, env.read_curves(row, at), law=own)
            for row, own in zip(curves, pairs, strict=True)]  # fmt: skip
    found = {name: np.array([row[name] for row in rows]) for name in ("N", "D")}
    exponents = {exponent_name(name): estimate(found[name][:, 1]) for name in ("N", "D")}
    return exponents | {f"{name}_coefficient": estimate(np.exp(found[name][:, 0])) for name in ("N", "D")}


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
    optima: Optima,
    law: tuple[float, float] | None,
    batch: float | None,
) -> pd.DataFrame:
    best = optima.of(0)
    sizes_at = np.array([size.params for size in sizes])[best.index]
    ln_sizes, ln_k = _shapes(sizes)
    envelope = values[best.index, np.arange(len(grid))]
    ln_n = np.where(best.used, best.ln_n, np.log(sizes_at))
    ln_l = np.where(best.used, best.value, envelope)
    logs = env.quantities(grid, ln_n, per_token_at(ln_sizes, ln_k, ln_n), ln_l, batch, law)
    low, high = band(optima.ln_n)
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


def _shares(fits: dict[str, PowerLaw], lines: pd.DataFrame) -> pd.DataFrame:
    """C_min = k B_crit S_min, so the exponents of N, B and S sum to one where k = 6 N."""
    low, high = lines["flops"].min(), lines["flops"].max()
    rows = []
    for name in ("N", "B", "S"):
        e = fits[name].exponent
        rows.append((name, e.value, e.low, e.high, (high / low) ** e.value, low, high))
    return pd.DataFrame(rows, columns=list(_no_shares().columns))
