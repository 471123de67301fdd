"""The optimum of a known law L(N, D) over all sizes: what a procedure would find without noise on a dense grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.minima import per_token_at

_SIZES, _LENGTHS = 300, 400  # of the grid of sizes, and of the tokens at which each is read
_BEYOND = 1.0  # in ln N on either side of the sizes


@dataclass(frozen=True)
class Dense:
    """ln N, ln L and ln k (FLOPs per token) of the best size at each compute value."""

    ln_n: np.ndarray
    ln_l: np.ndarray
    ln_k: np.ndarray


def dense_optimum(
    ln_loss: Callable[[float, np.ndarray], np.ndarray],
    params: np.ndarray,
    per_token: np.ndarray,
    batch: float | None,
    law: tuple[float, float] | None,
    at: np.ndarray,
) -> Dense:
    """Best size of `ln_loss(ln N, ln D)` at ln C = `at`; with a law (intercept, slope of ln B_crit against ln L) at
    ln C_min, the losses being those at `batch` tokens. params, per_token: N and FLOPs per token of the sweep's sizes,
    increasing; sizes between them have FLOPs per token between theirs."""
    known_n, known_k = np.log(params), np.log(per_token)
    ln_n = np.linspace(known_n.min() - _BEYOND, known_n.max() + _BEYOND, _SIZES)
    ln_k = per_token_at(known_n, known_k, ln_n)
    ln_d = np.linspace(at.min() - ln_k.max() - 1, at.max() - ln_k.min() + 3, _LENGTHS)
    values = np.empty((_SIZES, len(at)))
    for i in range(_SIZES):
        ln_l = ln_loss(float(ln_n[i]), ln_d)
        x = ln_k[i] + ln_d
        if law is not None and batch is not None:
            x = x - np.logaddexp(0.0, np.log(batch) - (law[0] + law[1] * ln_l))
        values[i] = np.interp(at, x, ln_l)
    low = np.clip(values.argmin(axis=0), 1, _SIZES - 2)
    left, middle, right = (values[low + shift, np.arange(len(at))] for shift in (-1, 0, 1))
    step = (left - right) / (2 * (left - 2 * middle + right))
    best = ln_n[low] + step * (ln_n[1] - ln_n[0])
    return Dense(best, middle - (left - right) * step / 4, per_token_at(known_n, known_k, best))
