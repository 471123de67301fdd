"""Lower envelopes of the loss over model sizes at equal compute, raw and adjusted, and the optimal size N_opt(C).

The sizes are compared on one curve each (`analysis.tables.sizes`). Raw means against C = k D at the batch they share,
with k the training FLOPs per token (6 N, unless the convention counts more); adjusted means against C_min =
C/(1 + B/B_crit(L)) (Kaplan et al. 2020, Eq. 5.5), each point with the B_crit of its own loss.

Sizes are discrete, so the best of them jumps: a line through the sizes of the envelope itself (`envelope_lines`) has an
exponent that is wrong by up to 0.12 with six sizes (simulated, planted 0.62), and with many sizes their noise decides
which is best: 0.3% of noise lowers it by 0.03 with fifty. The exponents therefore come from one surface of ln L in (ln
C, ln N) (`fit_surface`), least squares over the sizes within a factor of 3 of its own minimum (the neighbours at least).
On planted laws with 5 to 100 sizes its bias is at most 0.003, with and without noise, and its scatter below that of the
envelope. The curvature over ln N must be free to change along C: held equal, it raised the exponent by 0.02. Wider
windows scatter less and are biased where the loss is no parabola in ln N: real curves flatten towards large,
undertrained sizes, and twice the width lowered the exponent of such a sweep by 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.minima import Optima, lowest_size
from analysis.power_law import line
from analysis.tables.sizes import LEAST_SIZES, Size
from sweep.schema import InputError

GRID_PER_DECADE = 12
VALUES = 1500  # of compute, log-spaced, at which the envelope itself is read (Hoffmann et al. 2022, section 3.1)
FACTOR = 3.0  # in N around the best size: what the surface and the parabolas at each compute take in
_ROUNDS = 12  # of fitting the surface around its own minimum
_FREELY = 4  # of them with whole steps: two sets of points may each lead to the other, and halves settle between
_STILL = 1e-4  # in ln N: a line that moves less has settled
_FLAT = 0.05  # of the curvature in the middle: what it may fall to along C
_NO_SURFACE = np.full(6, np.nan)


def ln_compute(size: Size, y: np.ndarray, law: tuple[float, float] | None) -> np.ndarray:
    """ln C = ln k D along a size's curve, or ln C_min where a law (intercept, slope of ln B_crit against ln L) is
    given. Made to increase where noise in the loss would turn it back."""
    x = size.x + math.log(size.flops_per_token)
    if law is None:
        return x
    x = x - np.logaddexp(0.0, math.log(size.batch) - (law[0] + law[1] * y))
    return np.maximum.accumulate(np.where(np.isfinite(x), x, -np.inf))


def compute_grid(curves: Sequence[tuple[np.ndarray, np.ndarray]], lowest: float = -math.inf) -> np.ndarray:
    """ln C, log-spaced, over what three or more of the curves (ln C, ln L) reach, up to where the first of them falls
    below ln L = `lowest`."""
    ranges = [(x[np.isfinite(y)][0], x[np.isfinite(y)][-1]) for x, y in curves if np.isfinite(y).any()]
    if len(ranges) < 3:
        raise InputError(f"frontier: {len(ranges)} model sizes have curves to compare; give at least {LEAST_SIZES}")
    low, high = sorted(r[0] for r in ranges)[2], sorted(r[1] for r in ranges)[-3]
    below = [x[y < lowest] for x, y in curves]
    high = min([high, *(x[0] for x in below if len(x))])
    step = math.log(10) / GRID_PER_DECADE
    grid = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
    if not len(grid):
        raise InputError("frontier: no range of compute is covered by three model sizes; train the small ones longer")
    return grid


def read_curves(curves: Sequence[tuple[np.ndarray, np.ndarray]], grid: np.ndarray) -> np.ndarray:
    """ln L [sizes, grid] of curves (ln x, ln L); nan where a curve is not known."""
    rows = []
    for x, y in curves:
        good = np.isfinite(y) & np.isfinite(x)
        rows.append(np.interp(grid, x[good], y[good], left=np.nan, right=np.nan) if good.sum() else grid * np.nan)
    return np.array(rows)


def fit_surface(ln_n: np.ndarray, grid: np.ndarray, values: np.ndarray, optima: Optima) -> np.ndarray:
    """The valley of ln L over ln N along ln C: (n0, a, d, l0, l1, l2) with c = ln C - `grid.mean()`, ln N_opt = n0 + a
    c, ln L(N) = ln L_opt + d ln^2(N/N_opt) at c = 0, and ln L_opt = l0 + l1 c + l2 c^2. nan where there are fewer than
    three interior optima or no minimum.

    Around the line N_opt(C), with u the distance from it in ln N, ln L = l(C) + (t0 + t1 c) u + (d + d1 c) u^2 by least
    squares, l free at each C. Where its minimum is not on the line, the line moves there, until it stays. The first
    line is through the sizes around the lowest one at each interior compute. The lowest is low by noise as well as by
    size, which draws the minimum towards it; so from then on the sizes around the line are taken, wherever that lies
    between the smallest and the largest size.
    """
    if optima.interior.sum() < 3:
        return _NO_SURFACE
    known, c = np.isfinite(values), grid - grid.mean()
    take = optima.window & optima.interior
    line_of = np.array(line(c, np.where(optima.interior, ln_n[optima.index], np.nan)))
    for turn in range(_ROUNDS):
        found = _valley(ln_n, c, values, take, line_of)
        if found is None:
            return _NO_SURFACE
        step, bend, level = found
        line_of = line_of + (step if turn < _FREELY else step / 2)
        best = line_of[0] + line_of[1] * c
        left = np.where(known & (ln_n[:, None] <= best), ln_n[:, None], -np.inf).max(axis=0)
        right = np.where(known & (ln_n[:, None] >= best), ln_n[:, None], np.inf).min(axis=0)
        near = np.abs(ln_n[:, None] - best) <= math.log(FACTOR)
        near |= (ln_n[:, None] == left) | (ln_n[:, None] == right)
        again = known & near & (best >= ln_n[0]) & (best <= ln_n[-1])
        if (again == take).all() and np.abs(step * (1, np.ptp(c))).max() < _STILL:
            break
        take = again
    good = np.isfinite(level)
    falls = np.polynomial.polynomial.polyfit(c[good], level[good], min(2, int(good.sum()) - 1))
    return np.array([*line_of, bend, *np.pad(falls, (0, 3 - len(falls)))])


def _valley(
    ln_n: np.ndarray, c: np.ndarray, values: np.ndarray, take: np.ndarray, line_of: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """By how much (intercept, slope) the minimum lies off the line, the curvature at c = 0, and ln L of the minimum at
    each compute; from the points `take` [sizes, g]. None where there is no minimum."""
    take = take & (take.sum(axis=0) > 1)
    sizes, columns = np.nonzero(take)
    u, y, at = ln_n[sizes] - line_of[0] - line_of[1] * c[columns], values[sizes, columns], c[columns]
    number = np.bincount(columns, minlength=len(c))

    def mean(of: np.ndarray) -> np.ndarray:
        return np.bincount(columns, of, minlength=len(c)) / np.maximum(number, 1)

    terms = np.stack([u, u * at, u * u, u * u * at], axis=1)
    for free in (4, 3):  # a curvature that changes sign along C is noise: then it is held equal
        design = np.stack([term - mean(term)[columns] for term in terms.T[:free]], axis=1)
        k, _, rank, _ = np.linalg.lstsq(design, y - mean(y)[columns], rcond=None)
        t0, t1, d, d1 = np.pad(k, (0, 4 - free))
        used = number > 0
        if rank == free and (d + d1 * c[used] > _FLAT * abs(d)).all():
            break
    else:
        return None
    tilt, bend = t0 + t1 * c, np.where(used, d + d1 * c, 1.0)
    off = np.where(used, -tilt / (2 * bend), np.nan)
    level = np.where(used, mean(y - terms[:, :free] @ k) + tilt * off / 2, np.nan)
    step = np.array(line(c, off))
    return (step, float(d), level) if np.isfinite(step).all() else None


def surface_optimum(k: np.ndarray, grid: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln N_opt, ln L_opt) of `fit_surface` at ln C = `at`; the first is a straight line."""
    c = at - grid.mean()
    return k[0] + k[1] * c, k[3] + c * (k[4] + k[5] * c)


def quantities(
    ln_c: np.ndarray,
    ln_n: np.ndarray,
    ln_k: np.ndarray,
    ln_l: np.ndarray,
    batch: float | None,
    law: tuple[float, float] | None,
) -> dict[str, np.ndarray]:
    """ln of N, D, B, S and L at each ln C; ln_k: of the FLOPs per token at N. With a law, ln C is ln C_min: B =
    B_crit(L), S = S_min = C_min/(k B), and D = 2 B_crit S_min, the tokens of a run at the critical batch. Without, B =
    `batch`, D = C/k and S = D/B."""
    if law is None:
        ln_b = np.full_like(ln_c, math.log(batch) if batch else np.nan)
        return {"N": ln_n, "D": ln_c - ln_k, "B": ln_b, "S": ln_c - ln_k - ln_b, "L": ln_l}
    ln_b = law[0] + law[1] * ln_l
    return {"N": ln_n, "D": ln_c - ln_k + math.log(2), "B": ln_b, "S": ln_c - ln_k - ln_b, "L": ln_l}


def fit_lines(ln_c: np.ndarray, logs: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """(intercept, exponent) of each quantity against ln C."""
    return {name: line(ln_c, values) for name, values in logs.items()}


def dense(grid: np.ndarray) -> np.ndarray:
    """`VALUES` log-spaced ones over the range of a grid of ln C."""
    return np.linspace(grid[0], grid[-1], VALUES)


def envelope_lines(
    ln_n: np.ndarray, ln_k: np.ndarray, ln_c: np.ndarray, values: np.ndarray, *, least: bool = False
) -> dict[str, float]:
    """a, b, N_coefficient and D_coefficient of lines through the best size itself at each compute value, where it is
    no bound: approach 1 as Hoffmann et al. 2022 have it. values: ln L [sizes, g]. least: ln C is ln C_min, and D = 2
    C_min/k the tokens of a run at the critical batch. nan for fewer than two values of one size each."""
    index, interior = lowest_size(values)
    n = np.where(interior, ln_n[index], np.nan)
    d = ln_c - ln_k[index] + (math.log(2) if least else 0.0)
    (n0, a), (d0, b) = line(ln_c, n), line(ln_c, np.where(interior, d, np.nan))
    return {"a": a, "b": b, "N_coefficient": math.exp(n0), "D_coefficient": math.exp(d0)}
