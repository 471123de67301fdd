"""The best size at each compute value: the lowest of the sizes, and the minimum of a curve through those around it.

A lowest loss at the smallest or largest size is a bound on the best size, not an estimate of it. Otherwise the minimum
is that of a parabola of the loss in ln N (Hoffmann et al. 2022, approach 2), or of the Akima interpolant of ln L in
ln N (Porian et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

FIVE = 2  # sizes on either side of the best one: what an isoflop parabola takes in


@dataclass(frozen=True)
class Optima:
    """Best size at each compute value [..., g]. index: the lowest size. interior: sizes on both sides of it are worse,
    there or where they ended before (a bound otherwise). ln_n, value: of the parabola's minimum, nan where there is
    none among the sizes it was fitted to; used: there is one. coefficients: [..., g, 3] of the parabola c0 + c1 ln N +
    c2 ln^2 N; first, last: the outermost sizes in it; window: [..., sizes, g], all of them."""

    index: np.ndarray
    interior: np.ndarray
    ln_n: np.ndarray
    value: np.ndarray
    used: np.ndarray
    coefficients: np.ndarray
    first: np.ndarray
    last: np.ndarray
    window: np.ndarray

    def of(self, which: int | slice) -> Optima:
        """Those of one or some of many tables, by the first axis."""
        return Optima(*(getattr(self, f.name)[which] for f in fields(self)))


def lowest_size(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the lowest size at each compute value [..., g], and whether it is interior (`Optima`). values: [...,
    sizes, g] of increasing sizes, nan where one is not known there."""
    known = np.isfinite(values)
    number = known.sum(axis=-2)
    index = np.argmin(np.where(known, values, np.inf), axis=-2)
    rank = np.cumsum(known, axis=-2) - 1
    centre = np.take_along_axis(rank, index[..., None, :], axis=-2)[..., 0, :]
    interior = (number >= 3) & ((centre > 0) | _beaten(known, index)) & ((centre < number - 1) | _unborn(known, index))
    return index, interior


def find_optima(ln_n: np.ndarray, values: np.ndarray, factor: float | None = None) -> Optima:
    """Lowest size at each compute value, and the parabola through the five sizes centred on it, or with `factor`
    through its neighbours and all sizes within that factor of it.

    ln_n: [sizes], increasing. values: [..., sizes, g], nan where a size is not known there.
    """
    known = np.isfinite(values)
    index, interior = lowest_size(values)
    rank = np.cumsum(known, axis=-2) - 1
    away = np.abs(rank - np.take_along_axis(rank, index[..., None, :], axis=-2))
    near = away <= FIVE
    if factor is not None:
        near = (away <= 1) | (np.abs(ln_n[:, None] - ln_n[index][..., None, :]) <= math.log(factor) + 1e-9)
    window = known & near & (known.sum(axis=-2, keepdims=True) >= 3)
    take = np.swapaxes(window, -1, -2)
    vertex, least, coefficients = parabolas(np.broadcast_to(ln_n, take.shape), np.swapaxes(values, -1, -2), take)
    first, last = np.argmax(window, axis=-2), len(ln_n) - 1 - np.argmax(window[..., ::-1, :], axis=-2)
    used = interior & (vertex > ln_n[first]) & (vertex < ln_n[last])
    ln_opt, least = np.where(used, vertex, np.nan), np.where(used, least, np.nan)
    return Optima(index, interior, ln_opt, least, used, coefficients, first, last, window)


def parabolas(x: np.ndarray, y: np.ndarray, take: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares parabola through the points `take` of each row: x at its vertex and its value there (nan without a
    minimum, and for two points), and the coefficients [..., 3] of 1, x, x^2. All three arguments are [..., points]."""
    weight = take.astype(float)
    centre = (weight * np.where(take, x, 0.0)).sum(axis=-1) / np.maximum(weight.sum(axis=-1), 1.0)
    powers = np.where(take, x - centre[..., None], 0.0)[..., None] ** np.arange(3)
    normal = np.einsum("...s,...si,...sj->...ij", weight, powers, powers)
    right = np.einsum("...s,...si->...i", np.where(take, y, 0.0), powers)
    c = np.einsum("...ij,...j->...i", np.linalg.pinv(normal, hermitian=True), right)
    with np.errstate(divide="ignore", invalid="ignore"):
        cup = (c[..., 2] > 0) & (take.sum(axis=-1) >= 3)
        vertex = np.where(cup, -c[..., 1] / (2 * c[..., 2]), np.nan)
        least = np.where(cup, c[..., 0] - c[..., 1] ** 2 / (4 * c[..., 2]), np.nan)
    c0 = c[..., 0] - c[..., 1] * centre + c[..., 2] * centre**2
    return vertex + centre, least, np.stack([c0, c[..., 1] - 2 * c[..., 2] * centre, c[..., 2]], axis=-1)


def akima_minima(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and value of the minimum of the Akima interpolant (Akima 1970) through y [n, ...] at increasing x [n], n at
    least 3: exact, from the roots of the derivative of each cubic."""
    from scipy.interpolate import Akima1DInterpolator  # costs a third of a second; parabolas do without

    cubic, square, linear, _ = Akima1DInterpolator(x, y, axis=0).c
    wide = x.reshape(-1, *[1] * (y.ndim - 1))
    root = np.sqrt(np.maximum(square**2 - 3 * cubic * linear, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = -linear / (square + root)  # where the derivative rises through zero
    step = np.clip(np.where(np.isfinite(step), step, 0.0), 0.0, np.diff(wide, axis=0))
    value = y[:-1] + step * (linear + step * (square + step * cubic))
    at = np.concatenate([wide[:-1] + step, np.broadcast_to(wide, y.shape)])
    value = np.concatenate([value, y])
    best = np.argmin(value, axis=0)[None]
    return np.take_along_axis(at, best, axis=0)[0], np.take_along_axis(value, best, axis=0)[0]


def per_token_at(ln_n: np.ndarray, ln_k: np.ndarray, at: np.ndarray) -> np.ndarray:
    """ln k at ln N = `at`, k being the FLOPs per token of the sizes ln_n [sizes], increasing: straight lines between
    them, the outermost ones continued. Exact where k = 6 N."""
    if len(ln_n) < 2:
        return at + ln_k[0] - ln_n[0]
    i = np.clip(np.searchsorted(ln_n, at) - 1, 0, len(ln_n) - 2)
    return ln_k[i] + (at - ln_n[i]) * (ln_k[i + 1] - ln_k[i]) / (ln_n[i + 1] - ln_n[i])


def _beaten(known: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Whether, at each compute value, smaller sizes than the best have ended, and at the end of each of them a larger
    one was ahead of it. Curves of two sizes cross once, so more compute would not have brought them back: the best
    size is no bound. One that ended while it was the best might still be."""
    last = known.shape[-1] - 1 - np.argmax(known[..., ::-1], axis=-1)
    sizes, columns = np.arange(known.shape[-2]), np.arange(known.shape[-1])
    ended = (columns > last[..., None]) & (sizes[:, None] < index[..., None, :]) & known.any(axis=-1, keepdims=True)
    lost = (np.take_along_axis(index, last, axis=-1) > sizes)[..., None]
    return np.asarray(ended.any(axis=-2) & (lost | ~ended).all(axis=-2))


def _unborn(known: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The mirror image: larger sizes are not readable yet (warm-up), and where each first is, a smaller one is
    ahead."""
    first = np.argmax(known, axis=-1)
    sizes, columns = np.arange(known.shape[-2]), np.arange(known.shape[-1])
    absent = (columns < first[..., None]) & (sizes[:, None] > index[..., None, :]) & known.any(axis=-1, keepdims=True)
    behind = (np.take_along_axis(index, first, axis=-1) < sizes)[..., None]
    return np.asarray(absent.any(axis=-2) & (behind | ~absent).all(axis=-2))
