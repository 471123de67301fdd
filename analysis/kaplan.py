"""Kaplan's learning-curve surface L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (Kaplan et al. 2020, Eq. 5.6).

Fitted to undecayed curves of one batch size after the warm-up, S_min from Eq. 5.4 with the measured B_crit(L);
squared residuals of ln L. Evaluated at fixed compute or steps and a finite batch, the law is implicit in L and solved
by bisection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import engine
from analysis.tables.runs import Run
from analysis.tables.sizes import Size
from sweep.schema import InputError

NAMES = ("N_c", "alpha_N", "S_c", "alpha_S")
LEAST_SIZES, LEAST_POINTS = 3, 9
_POINTS_A_RUN, _SPAN = 8, 30.0


def readings(runs: Sequence[Run], sizes: Sequence[Size]) -> list[tuple[int, float]]:
    """(run, ln tokens) of the points to fit: of each size at the frontier's batch (the paper fits runs of one batch
    size) and at its setting that ends lowest, eight log-spaced points of every seed past the warm-up, over the last
    factor of 30 in tokens."""
    points: list[tuple[int, float]] = []
    for size in sizes:
        best = min(size.settings, key=lambda s: float(np.mean([runs[i].curve.y[-1] for i in s])))
        for i in best:
            curve = runs[i].curve
            start = max(curve.end - np.log(_SPAN), curve.start)
            if start < curve.end:
                points += [(i, float(x)) for x in np.linspace(start, curve.end, _POINTS_A_RUN)]
    return points


def fit_surface(
    params: np.ndarray,
    steps_min: np.ndarray,
    loss: np.ndarray,
    *,
    from_starts: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> engine.Fit:
    """Fit theta = (alpha_N ln N_c, alpha_N, alpha_S ln S_c, alpha_S).

    params: [n]. steps_min, loss: [n] or [problems, n]. Raises InputError for values that are not positive, fewer than
    three sizes or nine points.
    """
    for name, values in (("params", params), ("steps", steps_min), ("loss", loss)):
        if not (np.isfinite(values).all() and (np.asarray(values) > 0).all()):
            raise InputError(f"kaplan: {name} must be positive numbers; remove the other rows")
    if len(np.unique(params)) < LEAST_SIZES or len(params) < LEAST_POINTS:
        raise InputError(
            f"kaplan: {len(params)} points of {len(np.unique(params))} model sizes do not determine L(N, S_min); "
            f"give at least {LEAST_POINTS} points of {LEAST_SIZES} sizes"
        )
    ln_s = np.log(steps_min)
    design = np.zeros((*ln_s.shape[:-1], 2, len(params), 4))
    design[..., 0, :, 0] = design[..., 1, :, 2] = 1
    design[..., 0, :, 1], design[..., 1, :, 3] = -np.log(params), -ln_s
    if from_starts is None:
        middle_n, middle_s, level = np.log(params).mean(), ln_s.mean(), np.log(loss).mean()
        from_starts = np.array(
            [
                (level + np.log(share) + a * middle_n, a, level + np.log(1 - share) + s * middle_s, s)
                for share in (0.3, 0.6, 0.9)
                for a in (0.02, 0.07, 0.2, 0.5)
                for s in (0.1, 0.3, 0.7, 1.2)
            ]
        )
    return engine.solve(design, np.log(loss), from_starts, weights=weights)


def constants(theta: np.ndarray) -> dict[str, np.ndarray]:
    """N_c, alpha_N, S_c and alpha_S from theta [..., 4]."""
    n, alpha_n, s, alpha_s = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(all="ignore"):
        return dict(zip(NAMES, (np.exp(n / alpha_n), alpha_n, np.exp(s / alpha_s), alpha_s), strict=True))


def loss_at(
    theta: np.ndarray, law: tuple[float, float], batch: float, params: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Loss of models of `params` after `steps` updates of `batch` tokens, with ln B_crit = law[0] + law[1] ln L.

    Finds L with L = L(N, S/(1 + B_crit(L)/B)) by bisection in ln L, to 1e-12.
    """
    n, alpha_n, s, alpha_s = theta
    params, steps = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(steps, dtype=float))
    floor = n - alpha_n * np.log(params)
    low, high = floor, np.full_like(floor, np.log(1e4))
    for _ in range(60):
        middle = (low + high) / 2
        ln_s_min = np.log(steps) - np.logaddexp(0.0, law[0] + law[1] * middle - np.log(batch))
        reached = np.logaddexp(floor, s - alpha_s * ln_s_min) <= middle
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.exp((low + high) / 2)
