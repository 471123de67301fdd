"""The isoflop law of any table: minima, lines and intervals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.isoflop.budgets import LAW, Budgets, arrange
from analysis.isoflop.simulation import Simulated, laws_of, noise_of, simulate, valley_of
from analysis.isoflop.vertices import Minima, locate
from analysis.minima import per_token_at
from analysis.outcome import Estimate, Outcome, Warnings, plain
from analysis.tables.arrays import positive
from analysis.uncertainty import pivot
from analysis.uncertainty.valley import Valley
from sweep.schema import InputError

Method = Literal["parabola", "akima"]
INTERVAL = (
    "losses simulated around a smooth valley with the estimated noise, its variance redrawn by chi-square, the "
    "procedure repeated on each; basic (pivotal) percentiles, which allow for its bias"
)


@dataclass(frozen=True)
class IsoflopOutcome(Outcome):
    """frames: "points" (fitted: the valley's loss) and "optima", one row a budget, with low and high of the size.
    grid_bias: of each estimate, what the grid of sizes does to it without any noise."""

    method: str = "parabola"
    grid_bias: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Of an outcome, with the method and the bias of the grid."""
        return super().to_json() | {"method": self.method, "grid_bias": plain(self.grid_bias)}


def fit(
    params: np.ndarray,
    loss: np.ndarray,
    flops: np.ndarray,
    *,
    tokens: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    method: Method = "parabola",
    noise: float | np.ndarray | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> IsoflopOutcome:
    """N_opt(C) and D_opt(C) from final losses at a few budgets; `analysis.isoflop` says how.

    params: N of each run [n]. loss: nats per token [n]. flops: C [n], FLOP. tokens: D [n]; without, C = 6 N D. weights:
    [n]; a budget's weight in the lines is the mean over its points. noise: standard deviation of ln(loss) between
    seeds, one or [n]; without, it is estimated from points of equal N and C, pooled with the residuals of the valley
    where those have fewer than four degrees of freedom. bootstrap: simulated tables behind the intervals (0: none; then
    the standard errors are those of the lines).

    Raises InputError where values are not positive numbers, or no budget has three sizes.
    """
    began = time.perf_counter()
    if method not in ("parabola", "akima"):
        raise InputError(f"{LAW}: method {method!r} is not known; use parabola or akima")
    columns = positive(LAW, params=params, loss=loss, flops=flops, tokens=tokens, weights=weights)
    if noise is not None and np.ndim(noise) == 0 and not 0 < float(noise) < np.inf:
        raise InputError(f"{LAW}: noise is {noise:g}; give a positive standard deviation of ln(loss)")
    known = None if noise is None else positive(LAW, noise=np.broadcast_to(noise, len(columns["params"])))["noise"]
    warnings = Warnings()
    table = arrange(columns, warnings)
    minima = locate(table.ln_n, table.ln_l, method)
    _warn_edges(minima, warnings)
    values = {name: float(v) for name, v in laws_of(table, minima).items()}
    estimates, simulated = _without_intervals(table, minima, values), None
    draws: dict[str, np.ndarray] = {}
    valley = valley_of(table, minima)
    if valley is not None:
        about = noise_of(table, valley, np.log(columns["loss"]), known)
        simulated = simulate(table, minima, valley, about, method, bootstrap, np.random.default_rng(seed))
        if len(simulated.scale):
            estimates, draws = _with_intervals(values, simulated, warnings)
        elif bootstrap:
            warnings.add(
                LAW, "noise_unknown", "too few sizes a budget to tell the noise, so there are no intervals; state the "
                "noise, repeat seeds, or add sizes"
            )  # fmt: skip
    return IsoflopOutcome(
        law=LAW,
        judged_as=f"fit isoflop {method}",
        estimates=estimates,
        points=int((table.budget >= 0).sum()),
        objective=_objective(table, minima),
        draws=draws,
        bootstrap=bootstrap,
        interval=INTERVAL if draws else "none",
        seconds=time.perf_counter() - began,
        span=_span(columns, table),
        frames={
            "points": _points(columns, table, minima, valley),
            "optima": _optima(table, minima, simulated if draws else None),
        },
        warnings=warnings,
        method=method,
        grid_bias=simulated.grid_bias if simulated is not None else {},
    )


def _warn_edges(minima: Minima, warnings: Warnings) -> None:
    edges = int((~minima.interior).sum())
    flat = int((minima.interior & ~minima.used).sum())
    number = len(minima.index)
    if edges:
        warnings.add(
            LAW, "optimum_at_edge", f"at {edges} of {number} budgets the lowest loss is at the smallest or largest "
            "size; these are bounds and left out of the lines. Add sizes on that side"
        )  # fmt: skip
    if flat:
        warnings.add(
            LAW, "no_minimum", f"at {flat} of {number} budgets the sizes around the lowest have no minimum between "
            "them; these are left out of the lines"
        )  # fmt: skip
    if minima.used.sum() < 2:
        warnings.add(LAW, "few_optima", f"{int(minima.used.sum())} budgets have a minimum; a line needs two")


def _with_intervals(
    values: Mapping[str, float], simulated: Simulated, warnings: Warnings
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    estimates, draws, failed = pivot.estimates(values, simulated.error, simulated.shift, simulated.scale)
    if failed:
        warnings.add(
            LAW, "replicates_failed", f"{failed} of {len(simulated.scale)} simulated tables have fewer than two minima "
            "and do not enter the intervals"
        )  # fmt: skip
    return estimates, draws


def _without_intervals(table: Budgets, minima: Minima, values: Mapping[str, float]) -> dict[str, Estimate]:
    """With the least-squares standard errors of the lines."""
    ln_d = table.ln_c - per_token_at(table.ln_sizes, table.ln_k, minima.ln_n)
    found = {name: Estimate(float(pivot.plain_value(name, value))) for name, value in values.items()}
    lines = (("N_coefficient", "a", minima.ln_n), ("D_coefficient", "b", ln_d),
             ("L_coefficient", "L_exponent", minima.ln_l))  # fmt: skip
    for coefficient, exponent, y in lines:
        intercept, slope = pivot.line_errors(table.ln_c, y, table.weight)
        if np.isfinite(slope):
            value = found[coefficient].value
            found[coefficient] = Estimate(value, value * intercept)
            found[exponent] = Estimate(found[exponent].value, slope)
    return found


def _objective(table: Budgets, minima: Minima) -> float | None:
    """Weighted sum of squared residuals of ln N_opt about its line."""
    intercept, slope = pivot.lines(table.ln_c, minima.ln_n, table.weight)
    if not np.isfinite(slope):
        return None
    off = (minima.ln_n - intercept - slope * table.ln_c)[minima.used]
    return float((table.weight[minima.used] * off**2).sum())


def _span(columns: Mapping[str, np.ndarray], table: Budgets) -> dict[str, tuple[float, float]]:
    used = table.budget >= 0
    tokens = columns.get("tokens", columns["flops"] / (6 * columns["params"]))
    found = {**{name: columns[name] for name in ("params", "flops", "loss")}, "tokens": tokens}
    return {name: (float(v[used].min()), float(v[used].max())) for name, v in found.items()}


def _points(columns: Mapping[str, np.ndarray], table: Budgets, minima: Minima, valley: Valley | None) -> pd.DataFrame:
    """The used points; fitted is nan outside the valley, without one everywhere."""
    used = table.budget >= 0
    g, s = table.budget[used], table.place[used]
    frame = pd.DataFrame({name: columns[name][used] for name in ("params", "flops", "loss")})
    frame["tokens"] = columns["tokens"][used] if "tokens" in columns else frame["flops"] / (6 * frame["params"])
    frame["budget"] = np.exp(table.ln_c)[g]
    fitted = np.full(table.ln_n.shape, np.nan)
    if valley is not None:
        fitted = np.where(np.isfinite(valley.residual), valley.at(table.ln_n), np.nan)
    frame["fitted"] = np.exp(fitted[g, s])
    frame["residual"] = np.log(frame["loss"]) - fitted[g, s]
    return frame


def _optima(table: Budgets, minima: Minima, simulated: Simulated | None) -> pd.DataFrame:
    """One row a budget. params, tokens, loss: of the minimum, nan where it is a bound; best: the size with the lowest
    loss, which is the bound; c0, c1, c2: of the parabola of the loss in ln N between fit_low and fit_high."""
    rows = np.arange(len(table.ln_c))
    frame = pd.DataFrame({"flops": np.exp(table.ln_c), "params": np.exp(minima.ln_n)})
    frame["low"], frame["high"] = np.nan, np.nan
    if simulated is not None:
        low, high = pivot.shifted(minima.ln_n, simulated.ln_n, simulated.ln_n_truth)
        frame["low"], frame["high"] = np.exp(low), np.exp(high)
    frame["tokens"] = np.exp(table.ln_c - per_token_at(table.ln_sizes, table.ln_k, minima.ln_n))
    frame["loss"] = np.exp(minima.ln_l)
    frame["best"] = np.exp(table.ln_n[rows, minima.index])
    edge = np.where(minima.index == 0, "smallest", "largest")
    frame["edge"] = np.where(minima.interior, "interior", edge)
    frame["used"] = minima.used
    frame["curvature"] = minima.curvature
    for i in range(3):
        frame[f"c{i}"] = minima.coefficients[:, i]
    frame["fit_low"], frame["fit_high"] = np.exp(minima.low), np.exp(minima.high)
    frame["sizes"] = (table.count > 0).sum(axis=1)
    return frame
