"""Kaplan's learning-curve surface L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (Kaplan et al. 2020, Eq. 5.6).

    steps = kaplan.steps_min(steps, batch_tokens, kaplan.critical_batch(loss, B_star, alpha_B))
    law = kaplan.fit(params, steps, loss, run=run_id, bootstrap=1000)

Fitted to undecayed curves of one batch size after the warm-up, S_min from Eq. 5.4 with the measured B_crit(L); squared
residuals of ln L. Evaluated at fixed compute or steps and a finite batch, the law is implicit in L and solved by
bisection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analysis import engine
from analysis.outcome import Outcome
from analysis.tables.runs import Run
from analysis.tables.sizes import Size
from analysis.uncertainty import resample
from sweep.schema import InputError

LAW = "kaplan-ns"
NAMES = ("N_c", "alpha_N", "S_c", "alpha_S")
LEAST_SIZES, LEAST_STEPS, LEAST_POINTS = 3, 3, 9
_POINTS_A_RUN, _SPAN = 8, 30.0


def critical_batch(loss: npt.ArrayLike, B_star: float, alpha_B: float) -> np.ndarray:
    """B_crit = B_star / L^(1/alpha_B) in tokens (Eq. 5.3)."""
    return np.asarray(B_star * np.asarray(loss, dtype=float) ** (-1 / alpha_B))


def steps_min(steps: npt.ArrayLike, batch_tokens: npt.ArrayLike, b_crit: npt.ArrayLike) -> np.ndarray:
    """S_min = S/(1 + B_crit/B), the steps that a batch far above B_crit would have needed (Eq. 5.4). b_crit: tokens, at
    the loss reached after these `steps`, so it changes along a curve."""
    ratio = np.asarray(b_crit, dtype=float) / np.asarray(batch_tokens, dtype=float)
    return np.asarray(np.asarray(steps, dtype=float) / (1 + ratio))


def flops_min(flops: npt.ArrayLike, batch_tokens: npt.ArrayLike, b_crit: npt.ArrayLike) -> np.ndarray:
    """C_min = C/(1 + B/B_crit), the compute that a batch far below B_crit would have needed (Eq. 5.5)."""
    ratio = np.asarray(batch_tokens, dtype=float) / np.asarray(b_crit, dtype=float)
    return np.asarray(np.asarray(flops, dtype=float) / (1 + ratio))


def fit(
    params: np.ndarray,
    steps_min: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    run: Sequence[object] | np.ndarray | None = None,
    kind: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Fit N_c, alpha_N, S_c, alpha_S of Eq. 5.6.

    params: N [n], without embeddings for Kaplan's convention. steps_min: S_min [n] (`steps_min` converts). loss: [n],
    nats per token, undecayed, past the warm-up. weights: [n], at least 0. run: [n], which run a point is read from;
    the bootstrap draws whole runs (without it, every row is one). kind, delta: loss function of the residuals of ln L.
    bootstrap: replicates behind the percentile intervals; without, standard errors are those of least squares, which
    count every point as independent, and None for other losses.

    Raises InputError for values that are not positive, fewer than nine points, three sizes or three values of S_min.
    """
    least = {"params": LEAST_SIZES, "steps_min": LEAST_STEPS}
    columns, y, w, labels = resample.points(
        LAW, {"params": params, "steps_min": steps_min}, loss, weights, run, least_points=LEAST_POINTS, least=least
    )
    n, s = columns["params"], columns["steps_min"]

    def solve(weights: np.ndarray, starts: np.ndarray) -> engine.Fit:
        return engine.solve(_design(n, s), np.log(y), starts, weights=weights, loss=kind, delta=delta, device=device)

    task = resample.Task(
        law=LAW,
        columns=columns,
        loss=y,
        weights=w,
        run=labels,
        solve=solve,
        starts=_starts(n, s, y),
        constants=constants,
        ln_fitted=lambda theta: np.log(predict(theta, n, s)),
        least=least,
        squared=kind == "squared",
    )
    return resample.fit(task, bootstrap=bootstrap, seed=seed, device=device)


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
    device: str = "cpu",
) -> engine.Fit:
    """Best theta = (alpha_N ln N_c, alpha_N, alpha_S ln S_c, alpha_S) of each problem, by squared residuals of ln L.

    params: [n]. steps_min, loss: [n] or [problems, n]. Raises InputError for values that are not positive, fewer than
    three sizes or nine points.
    """
    for name, values in (("params", params), ("steps", steps_min), ("loss", loss)):
        if not (np.isfinite(values).all() and (np.asarray(values) > 0).all()):
            raise InputError(f"{LAW}: {name} must be positive numbers; remove the other rows")
    if len(np.unique(params)) < LEAST_SIZES or len(params) < LEAST_POINTS:
        raise InputError(
            f"{LAW}: {len(params)} points of {len(np.unique(params))} model sizes do not determine L(N, S_min); "
            f"give at least {LEAST_POINTS} points of {LEAST_SIZES} sizes"
        )
    begin = _starts(params, steps_min, loss) if from_starts is None else from_starts
    return engine.solve(_design(params, steps_min), np.log(loss), begin, weights=weights, device=device)


def _design(params: np.ndarray, steps_min: np.ndarray) -> np.ndarray:
    """[..., 2 terms, n, 4] of theta for `engine.solve`."""
    ln_s = np.log(steps_min)
    design = np.zeros((*ln_s.shape[:-1], 2, len(params), 4))
    design[..., 0, :, 0] = design[..., 1, :, 2] = 1
    design[..., 0, :, 1], design[..., 1, :, 3] = -np.log(params), -ln_s
    return design


def _starts(params: np.ndarray, steps_min: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """[48, 4]: the middle point is met exactly, with several shares of the size term and exponents."""
    middle_n, middle_s, level = np.log(params).mean(), np.log(steps_min).mean(), np.log(loss).mean()
    return np.array(
        [
            (level + np.log(share) + a * middle_n, a, level + np.log(1 - share) + s * middle_s, s)
            for share in (0.3, 0.6, 0.9)
            for a in (0.02, 0.07, 0.2, 0.5)
            for s in (0.1, 0.3, 0.7, 1.2)
        ]
    )


def constants(theta: np.ndarray) -> dict[str, np.ndarray]:
    """N_c, alpha_N, S_c and alpha_S from theta [..., 4]."""
    n, alpha_n, s, alpha_s = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(all="ignore"):
        return dict(zip(NAMES, (np.exp(n / alpha_n), alpha_n, np.exp(s / alpha_s), alpha_s), strict=True))


def predict(theta: np.ndarray, params: npt.ArrayLike, steps_min: npt.ArrayLike) -> np.ndarray:
    """Loss of `params` after `steps_min` steps at a batch far above B_crit (Eq. 5.6), for one theta [4]."""
    n, alpha_n, s, alpha_s = theta
    size = np.exp(n - alpha_n * np.log(np.asarray(params, dtype=float)))
    return np.asarray(size + np.exp(s - alpha_s * np.log(np.asarray(steps_min, dtype=float))))


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
