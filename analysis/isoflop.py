"""Loss against size at fixed compute (Hoffmann et al. 2022, approach 2).

Per budget a parabola of the loss in ln N, unweighted, through the five sizes centred on the lowest (all, where there
are fewer); a lowest loss at the smallest or largest size is a bound and is not fitted. The law is the unweighted line
through ln N of the vertices: N_opt = N_coefficient C^a, and D_opt = C/k(N_opt) = D_coefficient C^b has its
own line, k being the FLOPs per token (6 N, where a + b = 1, unless the convention counts more).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.power_law import line
from analysis.tables.runs import Run
from sweep.schema import InputError

LEAST_SIZES = 4
BUDGETS = 6
_SAME_BUDGET = 0.1  # in ln C: final computes of decayed runs closer than this belong to one budget


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
    budgets: list[list[int]] = []
    for i in np.argsort(compute):
        if budgets and compute[i] - compute[budgets[-1][0]] < _SAME_BUDGET:
            budgets[-1].append(int(i))
        else:
            budgets.append([int(i)])
    kept = [b for b in budgets if len({runs[i].params for i in b}) >= LEAST_SIZES]
    return [(float(np.mean(compute[b])), b) for b in kept]


def fit_exponents(ln_c: np.ndarray, ln_n: np.ndarray, ln_k: np.ndarray) -> dict[str, float]:
    """a, b and the coefficients of N_opt(C) and D_opt(C) = C/k from interior optima, k the FLOPs per token at N_opt;
    nan for fewer than two."""
    ln_n0, a = line(ln_c, ln_n)
    ln_d0, b = line(ln_c, ln_c - ln_k)
    return {"a": a, "b": b, "N_coefficient": float(np.exp(ln_n0)), "D_coefficient": float(np.exp(ln_d0))}
