"""The compute values at which sizes are compared: those that runs share, or chosen ones that curves are read at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.isoflop.vertices import LEAST
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.tables.sizes import LEAST_SIZES
from sweep.schema import InputError

LAW = "isoflop"
BUDGETS = 6
SAME = 0.1  # in ln C: computes closer than this to the lowest of a budget belong to it, for steps are whole numbers
SAME_SIZE = 0.01  # in ln N: sizes read off a figure are not exactly equal


def group_close(values: np.ndarray, within: float = SAME) -> list[np.ndarray]:
    """Indices of the points of each group, the lowest group first. A group begins at the lowest value that none holds
    yet and takes in what lies less than `within` above it."""
    groups: list[list[int]] = []
    for i in np.argsort(values, kind="stable"):
        if groups and values[i] - values[groups[-1][0]] < within:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return [np.array(group) for group in groups]


def choose_budgets(curves: Sequence[tuple[np.ndarray, np.ndarray]], number: int = BUDGETS) -> np.ndarray:
    """ln C, log-spaced, over what four or more of the curves (ln C, ln L) reach and where one of the middle sizes is
    the lowest, when that is so anywhere."""
    ranges = [(x[np.isfinite(y)][0], x[np.isfinite(y)][-1]) for x, y in curves if np.isfinite(y).any()]
    if len(ranges) < LEAST_SIZES:
        raise InputError(f"isoflop: {len(ranges)} model sizes are not enough; give at least {LEAST_SIZES}")
    low, high = sorted(r[0] for r in ranges)[LEAST_SIZES - 1], sorted(r[1] for r in ranges)[-LEAST_SIZES]
    if high <= low:
        raise InputError(f"isoflop: no compute is reached by {LEAST_SIZES} sizes; train the small ones longer")
    grid = np.linspace(low, high, 60)
    values = np.array([np.interp(grid, x[np.isfinite(y)], y[np.isfinite(y)], np.nan, np.nan) for x, y in curves])
    known = np.isfinite(values)
    rank = np.cumsum(known, axis=0) - 1
    best = np.argmin(np.where(known, values, np.inf), axis=0)
    centre = rank[best, np.arange(len(grid))]
    interior = np.flatnonzero((centre > 0) & (centre < known.sum(axis=0) - 1))
    if len(interior) > 1:
        grid = grid[interior[0] : interior[-1] + 1]
    return np.linspace(grid[0], grid[-1], number)


def decayed_budgets(runs: Sequence[Run]) -> list[tuple[float, list[int]]]:
    """(ln C, runs) of each budget at which decayed runs of four or more sizes end."""
    compute = np.array([np.log(run.final_flops) for run in runs])
    kept = [b for b in group_close(compute) if len({runs[i].params for i in b}) >= LEAST_SIZES]
    return [(float(np.mean(compute[b])), b.tolist()) for b in kept]


@dataclass(frozen=True)
class Budgets:
    """Losses by budget [G] and size [S]; sizes increase along a row, which ends in nan where it has fewer.

    ln_c: mean of ln C. ln_n: [G, S]. ln_l: [G, S], mean over the points of equal N. count: [G, S] of those points.
    weight: [G], mean weight of the points. budget, place: row and column of every point of the table it was made from
    (-1: its budget has too few sizes). ln_sizes, ln_k: [sizes] of all sizes, increasing: FLOPs per token.
    """

    ln_c: np.ndarray
    ln_n: np.ndarray
    ln_l: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    budget: np.ndarray
    place: np.ndarray
    ln_sizes: np.ndarray
    ln_k: np.ndarray


def arrange(columns: Mapping[str, np.ndarray], warnings: Warnings) -> Budgets:
    """Points into budgets of three sizes or more; what is left out or taken together is said in `warnings`. columns:
    params, loss, flops, and tokens and weights where there are any. Raises InputError for no such budget."""
    ln_n, ln_l, ln_c = (np.log(columns[name]) for name in ("params", "loss", "flops"))
    ln_k = ln_c - np.log(columns["tokens"]) if "tokens" in columns else np.log(6) + ln_n
    groups = [(rows, [rows[own] for own in group_close(ln_n[rows], SAME_SIZE)]) for rows in group_close(ln_c)]
    kept = [(rows, sizes) for rows, sizes in groups if len(sizes) >= LEAST]
    if not kept:
        most = max(len(sizes) for _, sizes in groups)
        raise InputError(
            f"{LAW}: no compute (within {SAME:.0%}) has {LEAST} model sizes; the most is {most}. Give runs of several "
            "sizes at the same flops"
        )
    left = len(ln_n) - sum(len(rows) for rows, _ in kept)
    if left:
        warnings.add(
            LAW, "few_sizes", f"{left} points at {len(groups) - len(kept)} budgets of fewer than {LEAST} sizes are not "
            "used"
        )  # fmt: skip
    shape = len(kept), max(len(sizes) for _, sizes in kept)
    x, y, count = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
    budget, place = np.full(len(ln_n), -1), np.full(len(ln_n), -1)
    for g, (_, sizes) in enumerate(kept):
        for s, own in enumerate(sizes):
            x[g, s], y[g, s], count[g, s] = ln_n[own].mean(), ln_l[own].mean(), len(own)
            budget[own], place[own] = g, s
    weights = columns.get("weights", np.ones(len(ln_n)))
    sizes = group_close(ln_n, SAME_SIZE)
    return Budgets(
        ln_c=np.array([ln_c[rows].mean() for rows, _ in kept]),
        ln_n=x,
        ln_l=y,
        count=count,
        weight=np.array([weights[rows].mean() for rows, _ in kept]),
        budget=budget,
        place=place,
        ln_sizes=np.array([ln_n[own].mean() for own in sizes]),
        ln_k=np.array([ln_k[own].mean() for own in sizes]),
    )
