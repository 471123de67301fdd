"""The parametric law L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3).

Summed Huber loss (delta = 1e-3) of the residuals of ln L, the best of the paper's 4,500 starts (section D.3). From it
N_opt = G (C/6)^a and D_opt = (C/6)^b / G with a = beta/(alpha+beta), b = alpha/(alpha+beta) and
G = (alpha A / (beta B))^(1/(alpha+beta)) (Eq. 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from analysis import engine
from analysis.tables.runs import Run
from analysis.tables.sizes import Size
from sweep.schema import InputError

DELTA = 1e-3
LEAST_SIZES, LEAST_POINTS = 3, 9
NAMES = ("A", "B", "E", "alpha", "beta", "a", "b", "G")
_POINTS_A_RUN, _SPAN = (
    6,
    16.0,
)  # an undecayed curve is read over its last factor of 16, the span of the paper's horizons


def starts() -> np.ndarray:
    """The paper's grid [4500, 5] of (ln A, alpha, ln B, beta, ln E)."""
    exponent, log_e, log_a = np.arange(0, 2.1, 0.5), np.arange(-1, 1.1, 0.5), np.arange(0.0, 26, 5)
    return np.array(list(itertools.product(log_a, exponent, log_a, exponent, log_e)))


def fit_parametric(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    from_starts: np.ndarray | None = None,
    kind: engine.Loss = "huber",
    delta: float = DELTA,
    device: str = "cpu",
) -> engine.Fit:
    """Fit theta = (ln A, alpha, ln B, beta, ln E).

    params, tokens: [n]. loss: [n] or [problems, n]. weights: the same (bootstrap counts, for instance). from_starts:
    [k, 5] instead of the paper's grid. Raises InputError for values that are not positive, fewer than three sizes or
    fewer than nine points.
    """
    for name, values in (("params", params), ("tokens", tokens), ("loss", loss)):
        if not (np.isfinite(values).all() and (np.asarray(values) > 0).all()):
            raise InputError(f"parametric: {name} must be positive numbers; remove the other rows")
    if len(np.unique(params)) < LEAST_SIZES or len(params) < LEAST_POINTS:
        raise InputError(
            f"parametric: {len(params)} points of {len(np.unique(params))} model sizes do not determine five "
            f"parameters; give at least {LEAST_POINTS} points of {LEAST_SIZES} sizes"
        )
    design = np.zeros((3, len(params), 5))
    design[0, :, 0] = design[1, :, 2] = design[2, :, 4] = 1
    design[0, :, 1], design[1, :, 3] = -np.log(params), -np.log(tokens)
    begin = starts() if from_starts is None else from_starts
    return engine.solve(design, np.log(loss), begin, weights=weights, loss=kind, delta=delta, device=device)


def constants(theta: np.ndarray) -> dict[str, np.ndarray]:
    """A, B, E, alpha, beta, a, b and G from theta [..., 5]."""
    ln_a, alpha, ln_b, beta, ln_e = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(all="ignore"):
        total = alpha + beta
        ln_g = (np.log(alpha) + ln_a - np.log(beta) - ln_b) / total
        values = (np.exp(ln_a), np.exp(ln_b), np.exp(ln_e), alpha, beta, beta / total, alpha / total, np.exp(ln_g))
    return dict(zip(NAMES, values, strict=True))


def predict(theta: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Loss at (params, tokens)."""
    ln_a, alpha, ln_b, beta, ln_e = theta
    return np.exp(ln_e) + np.exp(ln_a - alpha * np.log(params)) + np.exp(ln_b - beta * np.log(tokens))


def readings(runs: Sequence[Run], sizes: Sequence[Size]) -> list[tuple[int, float]]:
    """(run, ln tokens) of the points to fit: for decayed runs the end; for undecayed curves, of each size at its
    setting that ends lowest, six log-spaced points of every seed over the last factor of 16 past twice the warm-up.
    Raw tokens at the frontier's batch, so that approaches 1, 2 and 3 speak of the same compute."""
    points: list[tuple[int, float]] = []
    for size in sizes:
        if size.decayed:
            points += [(i, float(runs[i].ln_tokens[-1])) for i in size.members]
            continue
        best = min(size.settings, key=lambda s: float(np.mean([runs[i].curve.y[-1] for i in s])))
        for i in best:
            end = runs[i].curve.end
            start = max(end - np.log(_SPAN), runs[i].curve.start + np.log(2), runs[i].ln_tokens[0])
            if start < end:
                points += [(i, float(x)) for x in np.linspace(start, end, _POINTS_A_RUN)]
    return points
