"""Tables of losses simulated around the smooth valley of a measured one, and what the procedure finds in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.isoflop.budgets import Budgets
from analysis.isoflop.vertices import NAMES, Minima, laws, locate
from analysis.minima import per_token_at
from analysis.uncertainty import pivot, redraw
from analysis.uncertainty.valley import NEAR, Valley, fit_valley

SEEDS_ALONE = 4  # degrees of freedom from repeated points that say enough about the noise by themselves
_WIDEST = 4.0  # of a redrawn standard deviation: with few degrees of freedom some would be absurd


@dataclass(frozen=True)
class Simulated:
    """error: [k] of each estimate, what the replicates have less their truth; shift: of the truth, by the budgets that
    the measured table has no minimum at. Both as `pivot.estimates` takes them. ln_n: [k, budgets] of the minima,
    ln_n_truth: [budgets]. scale: [k] of the noise. grid_bias: of each estimate, without noise."""

    error: dict[str, np.ndarray]
    shift: dict[str, float]
    ln_n: np.ndarray
    ln_n_truth: np.ndarray
    scale: np.ndarray
    grid_bias: dict[str, float]


def laws_of(table: Budgets, minima: Minima) -> dict[str, np.ndarray]:
    """The estimates [...] of a table's minima [..., budgets], as `vertices.laws` gives them."""
    return _laws(table, minima.ln_n, minima.ln_l, minima.curvature)


def valley_of(table: Budgets, minima: Minima) -> Valley | None:
    """Fitted to the sizes around the lowest of each budget; None where there are fewer than two minima, or too few
    points."""
    intercept, slope = pivot.lines(table.ln_c, minima.ln_n, table.weight)
    if not np.isfinite(slope):
        return None
    near = np.abs(np.arange(table.ln_n.shape[1]) - minima.index[:, None]) <= NEAR
    return fit_valley(table.ln_c, table.ln_n, table.ln_l, table.count * near, (float(intercept), float(slope)))


def noise_of(
    table: Budgets, valley: Valley, ln_l: np.ndarray, known: np.ndarray | None
) -> tuple[np.ndarray, float] | None:
    """Standard deviation of the mean ln L of each cell [G, S], and the degrees of freedom behind it (inf: it was given
    as `known`, [n] of the points); None where nothing tells. ln_l: of the points [n]."""
    used = table.budget >= 0
    cell = table.budget[used], table.place[used]
    if known is not None:
        variance = np.zeros(table.count.shape)
        np.add.at(variance, cell, known[used] ** 2)
        return np.sqrt(variance) / np.maximum(table.count, 1), np.inf
    square = float(((ln_l[used] - table.ln_l[cell]) ** 2).sum())
    freedom = int((table.count[table.count > 0] - 1).sum())
    if freedom < SEEDS_ALONE or square == 0:
        square += valley.sigma**2 * valley.freedom
        freedom += valley.freedom
    if freedom < 2:
        return None
    return np.sqrt(square / freedom / np.maximum(table.count, 1)), float(freedom)


def simulate(
    table: Budgets,
    minima: Minima,
    valley: Valley,
    noise: tuple[np.ndarray, float] | None,
    method: str,
    number: int,
    rng: np.random.Generator,
) -> Simulated:
    """`number` tables with the valley's losses and noise (none without `noise`).

    The truth is the valley's own minimum at the budgets that have one. It is taken at those budgets where the replicate
    has minima too: a law that is no exact line has another slope through fewer of them. By as much the measured table's
    own missing budgets shift it. Where the valley has fewer than two minima, the truth is what the procedure finds in
    it without noise.
    """
    flat = valley.at(np.where(table.count > 0, table.ln_n, np.nan))
    clean = locate(table.ln_n, flat, method)
    sd, freedom = noise if noise is not None else (np.zeros(flat.shape), np.inf)
    number = number if noise is not None else 0
    scale = np.ones(number)
    if np.isfinite(freedom):
        scale = np.minimum(redraw.scales(freedom, number, rng), _WIDEST)
    shocks = rng.standard_normal((number, *flat.shape)) * sd * scale[:, None, None]
    found = locate(table.ln_n, flat + shocks, method)

    deep = valley.minimum()
    whole = _laws(table, *deep)
    if not all(np.isfinite(v) for v in whole.values()):
        deep = clean.ln_n, clean.ln_l, clean.curvature
        whole = _laws(table, *deep)

    def truth(used: np.ndarray) -> dict[str, np.ndarray]:
        return _laws(table, *(np.where(used, v, np.nan) for v in deep))

    own, theirs, again = truth(minima.used), truth(found.used), laws_of(table, found)
    at_grid, grid = truth(clean.used), laws_of(table, clean)
    return Simulated(
        error={name: again[name] - theirs[name] for name in NAMES},
        shift={name: float(whole[name] - own[name]) for name in NAMES},
        ln_n=found.ln_n,
        ln_n_truth=deep[0],
        scale=scale,
        grid_bias={name: pivot.difference(name, float(grid[name]), float(at_grid[name])) for name in NAMES},
    )


def _laws(table: Budgets, ln_n: np.ndarray, ln_l: np.ndarray, curvature: np.ndarray) -> dict[str, np.ndarray]:
    ln_k = per_token_at(table.ln_sizes, table.ln_k, ln_n)
    return laws(table.ln_c, ln_n, ln_l, curvature, ln_k, table.weight)
