"""The minimum of the loss over size at each budget, and the lines through the minima."""

from __future__ import annotations

from dataclasses import dataclass
from warnings import catch_warnings, simplefilter

import numpy as np

from analysis.minima import FIVE, akima_minima, parabolas
from analysis.uncertainty import pivot

NAMES = ("a", "b", "N_coefficient", "D_coefficient", "L_exponent", "L_coefficient", "curvature")
LEAST = 3  # sizes of a budget


@dataclass(frozen=True)
class Minima:
    """[..., budgets]: ln N and ln L at the minimum and the curvature d of ln L there (ln L + d ln^2(N/N_opt)), nan
    where there is none. index: of the lowest size; interior: it is neither the smallest nor the largest. coefficients:
    [..., budgets, 3] of the parabola of the loss, c0 + c1 ln N + c2 ln^2 N; low, high: ln N of its outermost sizes."""

    ln_n: np.ndarray
    ln_l: np.ndarray
    curvature: np.ndarray
    index: np.ndarray
    interior: np.ndarray
    coefficients: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Whether there is a minimum within the sizes it was fitted to."""
        return np.isfinite(self.ln_n)


def locate(ln_n: np.ndarray, ln_l: np.ndarray, method: str = "parabola") -> Minima:
    """The minima of many tables at once. ln_n: [G, S], increasing along S; ln_l: [..., G, S]; what a budget lacks is
    nan in both."""
    known = np.isfinite(ln_l) & np.isfinite(ln_n)
    x = np.broadcast_to(np.where(np.isfinite(ln_n), ln_n, 0.0), ln_l.shape)
    rank = np.cumsum(known, axis=-1) - 1
    number = known.sum(axis=-1)
    index = np.argmin(np.where(known, ln_l, np.inf), axis=-1)
    centre = np.take_along_axis(rank, index[..., None], axis=-1)
    interior = (centre[..., 0] > 0) & (centre[..., 0] < number - 1)
    take = known & (np.abs(rank - centre) <= FIVE)
    at, least, c = parabolas(x, np.where(known, np.exp(ln_l), 0.0), take)
    with np.errstate(invalid="ignore", divide="ignore"):
        curvature, value = c[..., 2] / least, np.log(least)
    if method == "akima":
        for g in np.flatnonzero(np.isfinite(ln_n).sum(axis=-1) >= LEAST):
            some = np.isfinite(ln_n[g])
            at[..., g], value[..., g] = akima_minima(ln_n[g, some], np.moveaxis(ln_l[..., g, some], -1, 0))
    low = np.where(take, x, np.inf).min(axis=-1)
    high = np.where(take, x, -np.inf).max(axis=-1)
    good = interior & (at > low) & (at < high) & np.isfinite(curvature)
    at, value, curvature = (np.where(good, v, np.nan) for v in (at, value, curvature))
    return Minima(at, value, curvature, index, interior, c, low, high)


def laws(
    ln_c: np.ndarray,
    ln_n: np.ndarray,
    ln_l: np.ndarray,
    curvature: np.ndarray,
    ln_k: np.ndarray,
    weight: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The estimates of `NAMES` [...] from minima [..., budgets] at ln_c [budgets], nan for fewer than two; coefficients
    and curvature are given as logarithms. ln_k: of the FLOPs per token at the minima. weight: [budgets]."""
    used = np.isfinite(ln_n)
    (n0, a), (d0, b), (l0, falls) = (
        pivot.lines(ln_c, np.where(used, v, np.nan), weight) for v in (ln_n, ln_c - ln_k, ln_l)
    )
    with np.errstate(invalid="ignore", divide="ignore"), catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # a table without minima has no median
        median = np.log(np.nanmedian(np.where(used, curvature, np.nan), axis=-1))
    median = np.where(np.isfinite(a), median, np.nan)
    return dict(zip(NAMES, (a, b, n0, d0, falls, l0, median), strict=True))
