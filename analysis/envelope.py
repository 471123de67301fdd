"""Lower envelopes of the loss over model sizes at equal compute, raw and adjusted, and the optimal size N_opt(C).

The sizes are compared on one curve each (`analysis.tables.sizes`). Raw means against C = k D at the batch they share,
with k the training FLOPs per token (6 N, unless the convention counts more); adjusted means against C_min =
C/(1 + B/B_crit(L)) (Kaplan et al. 2020, Eq. 5.5), each point with the B_crit of its own loss.

Sizes are discrete, so the best of them jumps: a line through the sizes of the envelope itself (`envelope_lines`) has an
exponent that is wrong by up to 0.12 with six sizes (simulated, planted 0.62), and with many sizes their noise decides
which is best: 0.3% of noise lowers it by 0.03 with fifty. The exponents therefore come from one surface of ln L in
(ln C, ln N) (`fit_surface`), least squares over the sizes within a factor of 3 of its own minimum (the neighbours at
least). On planted laws with 5 to 100 sizes its bias is at most 0.003, with and without noise; its scatter is below
that of the envelope but for five sizes. The curvature over ln N must be free to change along C: held equal, it raised
the exponent by 0.02. Wider windows scatter less and are biased where the loss is no parabola in ln N: real curves
flatten towards large, undertrained sizes, and twice the width lowered the exponent of such a sweep by 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.minima import Optima, lowest_size
from analysis.tables.sizes import LEAST_SIZES, Size
from analysis.uncertainty import pivot
from sweep.schema import InputError

GRID_PER_DECADE = 12
VALUES = 1500  # of compute, log-spaced, at which the envelope itself is read (Hoffmann et al. 2022, section 3.1)
FACTOR = 3.0  # in N around the best size: what the surface and the parabolas at each compute take in
_ROUNDS = 12  # of fitting the surface around its own minimum
_FREELY = 4  # of them with whole steps: two sets of points may each lead to the other, and halves settle between
_STILL = 1e-4  # in ln N: a line that moves less has settled
_FLAT = 0.05  # of the curvature in the middle: what it may fall to along C
_BLOCK = 2_000_000  # numbers that are fitted at once
_SINGULAR = 1e-9  # of the largest eigenvalue of the normal equations


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
    """The valley of ln L over ln N along ln C: (n0, a, d, l0, l1, l2) [..., 6] with c = ln C - `grid.mean()`, ln N_opt
    = n0 + a c, ln L(N) = ln L_opt + d ln^2(N/N_opt) at c = 0, and ln L_opt = l0 + l1 c + l2 c^2. nan where there are
    fewer than three interior optima or no minimum. values: [..., sizes, g], with their optima.

    Around the line N_opt(C), with u the distance from it in ln N, ln L = l(C) + (t0 + t1 c) u + (d + d1 c) u^2 by least
    squares, l free at each C. Where its minimum is not on the line, the line moves there, until it stays. The first
    line is through the lowest sizes at each interior compute, and so are the points around it. The lowest is low by
    noise as well as by size, which draws the minimum towards it; so from then on the sizes around the line are taken,
    wherever that lies between the smallest and the largest size.
    """
    if values.ndim == 3 and len(values) > 1 and values.size > _BLOCK:
        half = len(values) // 2
        parts = [fit_surface(ln_n, grid, values[own], optima.of(own)) for own in (slice(half), slice(half, None))]
        return np.concatenate(parts)
    c = grid - grid.mean()
    many = values.reshape(-1, *values.shape[-2:])
    interior = optima.interior.reshape(-1, len(grid))
    take = optima.window.reshape(many.shape) & interior[:, None]
    line_of = np.stack(pivot.lines(c, np.where(interior, ln_n[optima.index.reshape(-1, len(grid))], np.nan)), axis=-1)
    found = np.full((len(many), 6), np.nan)
    going = np.flatnonzero((interior.sum(axis=-1) >= 3) & np.isfinite(line_of).all(axis=-1))
    for turn in range(_ROUNDS):
        if not len(going):
            break
        step, bend, level = _valleys(ln_n, c, many[going], take[going], line_of[going])
        good = np.isfinite(step).all(axis=-1) & np.isfinite(bend)
        found[going[~good]] = np.nan
        going, step, bend, level = going[good], step[good], bend[good], level[good]
        line_of[going] += step if turn < _FREELY else step / 2
        again = _around(ln_n, c, many[going], line_of[going])
        falls = parabolas_along(c, level)
        found[going] = np.concatenate([line_of[going], bend[:, None], falls], axis=-1)
        still = (again == take[going]).all(axis=(1, 2)) & (np.abs(step * (1, np.ptp(c))).max(axis=-1) < _STILL)
        take[going] = again
        going = going[~still]
    return found.reshape(*values.shape[:-2], 6)


def _around(ln_n: np.ndarray, c: np.ndarray, values: np.ndarray, line_of: np.ndarray) -> np.ndarray:
    """The sizes [r, sizes, g] within `FACTOR` of the line and its neighbours, where it lies between the outermost."""
    best = (line_of[:, :1] + line_of[:, 1:] * c)[:, None]
    known, n = np.isfinite(values), ln_n[:, None]
    left = np.where(known & (n <= best), n, -np.inf).max(axis=1, keepdims=True)
    right = np.where(known & (n >= best), n, np.inf).min(axis=1, keepdims=True)
    near = (np.abs(n - best) <= math.log(FACTOR)) | (n == left) | (n == right)
    return np.asarray(known & near & (best >= ln_n[0]) & (best <= ln_n[-1]))


def _valleys(
    ln_n: np.ndarray, c: np.ndarray, values: np.ndarray, take: np.ndarray, line_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much (intercept, slope) [r, 2] the minimum lies off the line, the curvature at c = 0 [r], and ln L of the
    minimum at each compute [r, g]; from the points `take` [r, sizes, g]. nan where there is no minimum."""
    take = take & (take.sum(axis=1, keepdims=True) > 1)
    number = np.maximum(take.sum(axis=1, keepdims=True), 1)
    used = np.asarray(take.any(axis=1))
    reach = max(float(np.abs(c).max()), 1e-9)

    def centred(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.where(take, of, 0.0)
        mean = inside.sum(axis=1, keepdims=True) / number
        return np.where(take, of - mean, 0.0), mean[:, 0]

    u = ln_n[:, None] - (line_of[:, :1] + line_of[:, 1:] * c)[:, None]
    z = c / reach
    pairs = [centred(term) for term in (u, u * z, u * u, u * u * z)]
    design, means = (np.stack(part, axis=1) for part in zip(*pairs, strict=True))
    y, mean_y = centred(values)
    normal = np.einsum("risg,rjsg->rij", design, design)
    right = np.einsum("risg,rsg->ri", design, y)
    k = np.full((len(values), 4), np.nan)
    for free in (4, 3):  # a curvature that changes sign along C is noise: then it is held equal
        rest = np.isnan(k).any(axis=-1)
        own = normal[rest][:, :free, :free]
        eigen = np.linalg.eigvalsh(own)
        theta = np.zeros((len(own), 4))
        theta[:, :free] = np.einsum("rij,rj->ri", np.linalg.pinv(own, hermitian=True), right[rest][:, :free])
        along = np.where(used[rest], theta[:, 2:3] + theta[:, 3:] * z, np.inf).min(axis=-1, keepdims=True)
        good = (eigen[:, :1] > _SINGULAR * eigen[:, -1:]) & (theta[:, 2:3] > 0)
        good &= along > _FLAT * theta[:, 2:3]
        k[rest] = np.where(good, theta, np.nan)
    tilt, bend = k[:, :1] + k[:, 1:2] * z, k[:, 2:3] + k[:, 3:] * z
    off = np.where(used, -tilt / (2 * bend), np.nan)
    level = np.where(used, mean_y - np.einsum("ri,rig->rg", k, means) + tilt * off / 2, np.nan)
    return np.stack(pivot.lines(c, off), axis=-1), k[:, 2], level


def parabolas_along(c: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Coefficients [..., 3] of 1, c, c^2 of the least-squares parabola through each row of `level` [..., g], which may
    be nan in places; of the shortest where fewer than three values determine none."""
    reach = max(float(np.abs(c).max()), 1e-9)
    powers = (c / reach)[:, None] ** np.arange(3)
    good = np.isfinite(level).astype(float)
    normal = np.einsum("...g,gi,gj->...ij", good, powers, powers)
    right = np.einsum("...g,gi->...i", np.where(good > 0, level, 0.0), powers)
    k = np.einsum("...ij,...j->...i", np.linalg.pinv(normal, hermitian=True), right)
    return np.asarray(k / reach ** np.arange(3))


def surface_optimum(k: np.ndarray, grid: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln N_opt, ln L_opt) [..., n] of `fit_surface` at ln C = `at` [n]; the first is a straight line."""
    c = at - grid.mean()
    n0, a, _, l0, l1, l2 = (k[..., i, None] for i in range(6))
    return n0 + a * c, l0 + c * (l1 + l2 * c)


def quantities(
    ln_c: np.ndarray,
    ln_n: np.ndarray,
    ln_k: np.ndarray,
    ln_l: np.ndarray,
    batch: float | None,
    law: tuple[np.ndarray | float, np.ndarray | float] | None,
) -> dict[str, np.ndarray]:
    """ln of N, D, B, S and L at each ln C, of one shape; ln_k: of the FLOPs per token at N. With a law, ln C is ln
    C_min: B = B_crit(L), S = S_min = C_min/(k B), and D = 2 B_crit S_min, the tokens of a run at the critical batch.
    Without, B = `batch`, D = C/k and S = D/B."""
    if law is None:
        ln_b = np.full_like(ln_n, math.log(batch) if batch else np.nan)
        return {"N": ln_n, "D": ln_c - ln_k, "B": ln_b, "S": ln_c - ln_k - ln_b, "L": ln_l}
    ln_b = law[0] + law[1] * ln_l
    return {"N": ln_n, "D": ln_c - ln_k + math.log(2), "B": ln_b, "S": ln_c - ln_k - ln_b, "L": ln_l}


def fit_lines(ln_c: np.ndarray, logs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(intercept, exponent) [..., 2] of each quantity [..., g] against ln C [g]."""
    return {name: np.stack(pivot.lines(ln_c, values), axis=-1) for name, values in logs.items()}


def dense(grid: np.ndarray) -> np.ndarray:
    """`VALUES` log-spaced ones over the range of a grid of ln C."""
    return np.linspace(grid[0], grid[-1], VALUES)


def envelope_lines(
    ln_n: np.ndarray,
    ln_k: np.ndarray,
    ln_c: np.ndarray,
    values: np.ndarray,
    batch: float | None = None,
    law: tuple[np.ndarray | float, np.ndarray | float] | None = None,
) -> dict[str, np.ndarray]:
    """(intercept, exponent) [..., 2] of `quantities` through the best size itself at each compute value, where it is no
    bound: approach 1 as Hoffmann et al. 2022 have it. values: ln L [..., sizes, g]; nan for fewer than two values."""
    index, interior = lowest_size(values)
    best = np.take_along_axis(values, index[..., None, :], axis=-2)[..., 0, :]
    found = quantities(ln_c, ln_n[index], ln_k[index], best, batch, law)
    return fit_lines(ln_c, {name: np.where(interior, v, np.nan) for name, v in found.items()})
