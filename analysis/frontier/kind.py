"""The laws of one envelope, against C or C_min: from curves of the sizes to estimates, draws and optima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis import envelope as env
from analysis.frontier.curves import LAW, SizeCurve
from analysis.frontier.noise import draw_noise, estimate_noise
from analysis.minima import Optima, find_optima, lowest_size, per_token_at
from analysis.outcome import Estimate, Warnings
from analysis.uncertainty import pivot, redraw
from analysis.uncertainty.valley import NEAR, Valley, fit_valley

Method = Literal["surface", "envelope"]
Law = tuple[float, float]  # intercept and slope of ln B_crit against ln L
_INDEPENDENT = 0.25  # of the compute values of the grid, by a rule of thumb for the choice of the valley's terms
_WIDEST = 4.0  # of a redrawn standard deviation


@dataclass(frozen=True)
class Kind:
    """estimates, draws, optima, points: as in an outcome. other: values by the other method. objective: sum of squared
    residuals of ln L about the valley. failed: simulated envelopes in which nothing was found."""

    estimates: dict[str, Estimate]
    draws: dict[str, np.ndarray]
    optima: pd.DataFrame
    points: pd.DataFrame
    span: dict[str, tuple[float, float]]
    other: dict[str, float]
    grid_bias: dict[str, float]
    objective: float | None
    failed: int


@dataclass(frozen=True)
class _Envelope:
    """The curves of all sizes on one grid of ln C: values [sizes, g] of ln L. batch: common to all, if so."""

    ln_n: np.ndarray
    ln_k: np.ndarray
    grid: np.ndarray
    values: np.ndarray
    batch: float | None
    law: Law | None

    def named(self, lines: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Estimates [...], coefficients as logarithms, of lines [..., 2] that the runs themselves determine."""
        fixed = set() if self.law is not None else {"B"} if self.batch is not None else {"B", "S"}
        out: dict[str, np.ndarray] = {}
        for name, line in lines.items():
            if name not in fixed:
                out[{"N": "a", "D": "b"}.get(name, f"{name}_exponent")] = line[..., 1]
                out[f"{name}_coefficient"] = line[..., 0]
        return out

    def lines(self, at: np.ndarray, ln_n: np.ndarray, ln_l: np.ndarray) -> dict[str, np.ndarray]:
        """Through optima [..., g] at ln C = `at` [g]."""
        ln_k = per_token_at(self.ln_n, self.ln_k, ln_n)
        return self.named(env.fit_lines(at, env.quantities(at, ln_n, ln_k, ln_l, self.batch, self.law)))

    def by_surface(self, values: np.ndarray, optima: Optima, at: np.ndarray) -> dict[str, np.ndarray]:
        """Through the minimum of the surface of `values` [..., sizes, g], with its curvature."""
        k = env.fit_surface(self.ln_n, self.grid, values, optima)
        return self.lines(at, *env.surface_optimum(k, self.grid, at)) | {"curvature": np.log(k[..., 2])}

    def by_envelope(self, values: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Straight through the best sizes at 1,500 compute values, and which of these [1500] are no bounds. values:
        [sizes, g]."""
        at = env.dense(self.grid)
        left = np.clip(np.searchsorted(self.grid, at) - 1, 0, max(0, len(self.grid) - 2))
        right = np.minimum(left + 1, len(self.grid) - 1)
        share = (at - self.grid[left]) / np.maximum(self.grid[right] - self.grid[left], 1e-300)
        fine = values[..., left] * (1 - share) + values[..., right] * share  # nan next to nan
        lines = env.envelope_lines(self.ln_n, self.ln_k, at, fine, self.batch, self.law)
        return self.named(lines), lowest_size(fine)[1]


def fit_kind(
    name: str,
    sizes: Sequence[SizeCurve],
    batch: float | None,
    law: Law | None,
    method: Method,
    number: int,
    rng: np.random.Generator,
    warnings: Warnings,
) -> Kind:
    """One kind with intervals from `number` simulated envelopes. Raises InputError where three sizes cover no compute
    together."""
    curves = [size.lowest() for size in sizes]
    ln_n, ln_k = np.log([size.params for size in sizes]), np.array([size.ln_k for size in sizes])
    grid = env.compute_grid(curves)
    e = _Envelope(ln_n, ln_k, grid, env.read_curves(curves, grid), batch, law)
    optima = find_optima(ln_n, e.values, env.FACTOR)
    at = grid[optima.interior]
    _warn_edges(name, len(at), len(grid), warnings)
    surface = e.by_surface(e.values, optima, at)
    envelope, _ = e.by_envelope(e.values)
    values, other = (surface, envelope) if method == "surface" else (envelope, surface)
    estimates = {key: Estimate(float(pivot.plain_value(key, v))) for key, v in values.items()}
    draws: dict[str, np.ndarray] = {}
    bias: dict[str, float] = {}
    valley, take = _valley(e, optima) if np.isfinite(surface["a"]) else (None, np.zeros(e.values.shape, bool))
    bands, failed = np.full((2, len(grid)), np.nan), 0
    if valley is not None:
        simulated = _simulate(e, valley, take, method, at, number, rng)
        bias = simulated.grid_bias
        if len(simulated.scale):
            error = {key: simulated.error[key] for key in values}
            plain = {key: float(v) for key, v in values.items()}
            estimates, draws, failed = pivot.estimates(plain, error, dict.fromkeys(values, 0.0), simulated.scale)
            bands = pivot.shifted(optima.ln_n, simulated.ln_n, valley.minimum()[0])
        elif number:
            warnings.add(LAW, "noise_unknown", f"{name}: too few sizes at each compute to tell the noise; no intervals")
    return Kind(
        estimates=estimates,
        draws=draws,
        optima=_optima(e, optima, bands),
        points=_points(e, valley, take),
        span=_span(e, optima),
        other={key: float(pivot.plain_value(key, v)) for key, v in other.items()},
        grid_bias=bias,
        objective=None if valley is None else float(np.nansum(valley.residual**2)),
        failed=failed,
    )


@dataclass(frozen=True)
class _Simulated:
    """error: [k] of each estimate, replicates less their truth. ln_n: [k, g] of the parabolas' minima. scale: [k]."""

    error: dict[str, np.ndarray]
    ln_n: np.ndarray
    scale: np.ndarray
    grid_bias: dict[str, float]


def _valley(e: _Envelope, optima: Optima) -> tuple[Valley | None, np.ndarray]:
    """Fitted to the sizes near the surface's line, and which these are [sizes, g]."""
    k = env.fit_surface(e.ln_n, e.grid, e.values, optima)
    best = k[0] + k[1] * (e.grid - e.grid.mean())
    known = np.isfinite(e.values)
    away = np.abs(e.ln_n[:, None] - best)
    rank = np.argsort(np.argsort(np.where(known, away, np.inf), axis=0), axis=0)
    near = (away <= 1.5 * np.log(env.FACTOR)) | (rank < NEAR)
    take = known & near & (best >= e.ln_n[0]) & (best <= e.ln_n[-1])
    take &= take.sum(axis=0) > 1
    x = np.broadcast_to(e.ln_n, (len(e.grid), len(e.ln_n)))
    line = float(k[0] - k[1] * e.grid.mean()), float(k[1])
    return fit_valley(e.grid, x, e.values.T, take.T.astype(float), line, _INDEPENDENT), take


def _simulate(
    e: _Envelope,
    valley: Valley,
    take: np.ndarray,
    method: Method,
    at: np.ndarray,
    number: int,
    rng: np.random.Generator,
) -> _Simulated:
    """The truth of each simulated envelope is the valley's own minimum, at the compute values that the method used."""
    base = np.where(np.isfinite(e.values), valley.at(np.broadcast_to(e.ln_n, e.values.T.shape)).T, np.nan)
    base = np.where(np.isfinite(valley.level), base, e.values)
    noise = estimate_noise(e.grid, (e.ln_n[:, None] - valley.centre), e.values, take)
    number = number if noise is not None else 0
    scale = np.ones(number)
    shocks = np.zeros((0, *base.shape))
    if noise is not None:
        scale = np.minimum(redraw.scales(noise.freedom, number, rng), _WIDEST)
        shocks = draw_noise(e.grid, len(e.ln_n), noise, scale, rng)
    ln_n, ln_l, bend = valley.minimum()
    c = e.grid - e.grid.mean()
    ln_l = (
        env.parabolas_along(c, ln_l) @ c ** np.arange(3)[:, None]
    )  # as the surface has it, where it has no minimum too
    inside, fine = np.isin(e.grid, at), env.dense(e.grid)
    values = np.concatenate([base[None], base + shocks])
    optima = find_optima(e.ln_n, values, env.FACTOR)
    if method == "surface":
        found = e.by_surface(values, optima, at)
        truth = e.lines(at, ln_n[inside], ln_l[inside]) | {"curvature": np.log(np.nanmedian(bend))}
    else:
        one_by_one = [e.by_envelope(row) for row in values]  # together they would fill the memory
        found = {name: np.array([lines[name] for lines, _ in one_by_one]) for name in one_by_one[0][0]}
        used = np.array([inside for _, inside in one_by_one])
        truth = e.lines(fine, *(np.where(used, np.interp(fine, e.grid, v), np.nan) for v in (ln_n, ln_l)))
    error = {name: found[name] - truth[name] for name in found}
    return _Simulated(
        error={name: v[1:] for name, v in error.items()},
        ln_n=optima.ln_n[1:],
        scale=scale,
        grid_bias={name: float(v[0]) for name, v in error.items() if not pivot.is_logarithm(name)},
    )


def _warn_edges(name: str, interior: int, number: int, warnings: Warnings) -> None:
    if interior < number:
        what = "these are bounds and left out" if interior >= 3 else "N(C) is not fitted. Add sizes on that side"
        warnings.add(
            LAW, "optimum_at_edge", f"{name}: at {number - interior} of {number} compute values the best size is the "
            f"smallest or largest; {what}"
        )  # fmt: skip


def _optima(e: _Envelope, optima: Optima, bands: np.ndarray) -> pd.DataFrame:
    """One row a compute value. params, tokens, loss: of the parabola through the sizes around the best, nan where that
    is a bound; best: the size with the lowest loss; low, high: of params."""
    frame = pd.DataFrame({"flops": np.exp(e.grid), "params": np.exp(optima.ln_n)})
    frame["low"], frame["high"] = np.exp(bands)
    ln_k = per_token_at(e.ln_n, e.ln_k, optima.ln_n)
    found = env.quantities(e.grid, optima.ln_n, ln_k, optima.value, e.batch, e.law)
    frame["tokens"], frame["loss"] = np.exp(found["D"]), np.exp(found["L"])
    frame["steps"], frame["batch_tokens"] = np.exp(found["S"]), np.exp(found["B"])
    frame["best"] = np.exp(e.ln_n[optima.index])
    first = np.argmax(np.isfinite(e.values), axis=0)
    frame["edge"] = np.where(optima.interior, "interior", np.where(optima.index == first, "smallest", "largest"))
    frame["used"] = optima.used
    return frame


def _points(e: _Envelope, valley: Valley | None, take: np.ndarray) -> pd.DataFrame:
    """What the valley was fitted to: one row a size and compute value near the optimum."""
    size, g = np.nonzero(take)
    frame = pd.DataFrame({"params": np.exp(e.ln_n[size]), "flops": np.exp(e.grid[g])})
    frame["loss"] = np.exp(e.values[size, g])
    if valley is not None:
        frame["residual"] = valley.residual[g, size]
        frame["fitted"] = frame["loss"] / np.exp(frame["residual"])
    return frame


def _span(e: _Envelope, optima: Optima) -> dict[str, tuple[float, float]]:
    at = np.flatnonzero(optima.interior) if optima.interior.any() else np.arange(len(e.grid))
    best = e.values[optima.index[at], at]
    ln_d = e.grid[at] - e.ln_k[optima.index[at]]
    found = {"flops": e.grid[at], "params": e.ln_n, "tokens": ln_d, "loss": best}
    return {name: (float(np.exp(v.min())), float(np.exp(v.max()))) for name, v in found.items()}
