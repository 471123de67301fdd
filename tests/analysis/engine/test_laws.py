"""The engine beside scipy's optimisers on every form of law and every loss, from the same starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize

from analysis import engine

DELTA = 3e-3


@dataclass(frozen=True)
class Law:
    """ln y [n] of theta by numpy, the planted theta, and the engine's fit of ln y from starts [s, p]."""

    ln_y: Callable[[np.ndarray], np.ndarray]
    planted: np.ndarray
    solve: Callable[..., engine.Fit]


def linear_terms(design: np.ndarray, planted: list[float], offset: np.ndarray | None = None) -> Law:
    offset = np.zeros(design.shape[:2]) if offset is None else offset

    def solve(target: np.ndarray, starts: np.ndarray, loss: engine.Loss) -> engine.Fit:
        return engine.solve(design, target, starts, offset=offset, loss=loss, delta=DELTA)

    return Law(lambda theta: np.logaddexp.reduce(design @ theta + offset), np.array(planted), solve)


def design_of(points: int, free: int, *terms: dict[int, np.ndarray | float]) -> np.ndarray:
    """[terms, points, free] from each term's columns by parameter."""
    design = np.zeros((len(terms), points, free))
    for t, columns in enumerate(terms):
        for p, column in columns.items():
            design[t, :, p] = column
    return design


def make_laws() -> dict[str, Law]:
    ln_n, ln_d = (g.ravel() for g in np.meshgrid(np.linspace(14, 20, 5), np.linspace(19, 25, 5)))
    x, ln_b = np.linspace(0, 8, 16), np.log(2.0) * np.arange(11, 19)

    def kaplan(theta: torch.Tensor, n: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        a, ratio, c, alpha_d = theta
        return alpha_d * torch.logaddexp(a - ratio * n, c - d)

    def solve_kaplan(target: np.ndarray, starts: np.ndarray, loss: engine.Loss) -> engine.Fit:
        return engine.solve_curve(kaplan, (ln_n, ln_d), target, starts, loss=loss, delta=DELTA)

    steps = np.stack([np.zeros_like(ln_b), -ln_b])
    return {
        "power-law": linear_terms(design_of(16, 2, {0: 1, 1: x}), [1.0, -0.3]),
        "power-law with offset": linear_terms(design_of(16, 3, {0: 1, 1: x}, {2: 1}), [1.0, -0.4, -0.5]),
        "S = S_min + E_min/B": linear_terms(design_of(8, 2, {0: 1}, {1: 1}), [7.0, 17.0], steps),
        "parametric": linear_terms(
            design_of(25, 5, {0: 1, 1: -ln_n}, {2: 1, 3: -ln_d}, {4: 1}), [6.2, 0.35, 7.7, 0.37, 0.6]
        ),
        "Eq. 5.6": linear_terms(design_of(25, 4, {0: 1, 1: -ln_n}, {2: 1, 3: -(ln_d - 12)}), [2.4, 0.077, 5.8, 0.76]),
        "Eq. 1.5": Law(
            lambda t: t[3] * np.logaddexp(t[0] - t[1] * ln_n, t[2] - ln_d),
            np.array([23.5, 0.738, 30.5, 0.103]),
            solve_kaplan,
        ),
    }


LAWS = make_laws()


def rho(r: np.ndarray, loss: engine.Loss) -> np.ndarray:
    size = np.abs(r)
    if loss == "squared":
        return r * r
    return size if loss == "absolute" else np.where(size <= DELTA, r * r / 2, DELTA * (size - DELTA / 2))


def best_of_scipy(law: Law, target: np.ndarray, starts: np.ndarray, loss: engine.Loss) -> float:
    """Least objective of least_squares in its own robust losses, of Nelder-Mead from there, and for the absolute loss
    of SLSQP on min sum t with -t <= r <= t."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.nan_to_num(law.ln_y(theta) - target, nan=1e6, posinf=1e6, neginf=-1e6)

    def objective(theta: np.ndarray) -> float:
        return float(rho(residuals(theta), loss).sum())

    best = np.inf
    for start in starts:
        kind = "linear" if loss == "squared" else "huber"
        scale = 1e-5 if loss == "absolute" else DELTA
        ends = [
            least_squares(
                residuals, start, loss=kind, f_scale=scale, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15,
                max_nfev=400,
            ).x
        ]  # fmt: skip
        if loss == "absolute":
            p = len(start)
            bounds = {"type": "ineq", "fun": lambda v, p=p: np.r_[v[p:] - residuals(v[:p]), v[p:] + residuals(v[:p])]}
            first = np.r_[ends[0], np.abs(residuals(ends[0]))]
            options = {"ftol": 1e-14, "maxiter": 200}
            ends.append(minimize(lambda v, p=p: v[p:].sum(), first, constraints=bounds, options=options).x[:p])
        options = {"xatol": 1e-12, "fatol": 1e-16, "maxiter": 600}
        ends.append(minimize(objective, min(ends, key=objective), method="Nelder-Mead", options=options).x)
        best = min(best, *map(objective, ends))
    return best


@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
@pytest.mark.parametrize("name", LAWS)
def test_never_worse_than_the_best_of_scipy(name: str, loss: engine.Loss) -> None:
    torch.set_num_threads(1)
    law, rng = LAWS[name], np.random.default_rng(len(name))
    exact = law.ln_y(law.planted)
    target = exact + 0.01 * rng.standard_t(3, len(exact))
    starts = law.planted * (1 + 0.1 * rng.standard_normal((4, len(law.planted))))
    found = law.solve(target, starts, loss)
    assert found.converged.all()
    own = rho(law.ln_y(found.parameters[0]) - target, loss).sum()
    np.testing.assert_allclose(found.objective[0], own, rtol=1e-9)
    allowed = 1e-6 if loss == "absolute" else 1e-9
    assert found.objective[0] <= best_of_scipy(law, target, starts, loss) * (1 + allowed)


@pytest.mark.parametrize("loss", ["squared", "huber", "absolute"])
@pytest.mark.parametrize("name", LAWS)
def test_planted_constants_come_back(name: str, loss: engine.Loss) -> None:
    torch.set_num_threads(1)
    law, rng = LAWS[name], np.random.default_rng(3)
    starts = law.planted * (1 + 0.1 * rng.standard_normal((4, len(law.planted))))
    found = law.solve(law.ln_y(law.planted), starts, loss)
    assert found.converged.all()
    np.testing.assert_allclose(found.parameters[0], law.planted, rtol=1e-5)
