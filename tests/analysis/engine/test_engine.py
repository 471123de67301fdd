"""The batched engine against closed forms, scipy's optimisers and the public points of Hoffmann et al. 2022, fig. 4."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import least_squares, minimize

from analysis import engine, parametric
from analysis.engine import newton

POINTS = Path(os.environ.get("ISOLOSS_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "chinchilla_points.csv"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def exponentials(points: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design, target and starts of a noisy parametric law in two terms."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(2, 12, points)
    design = np.zeros((2, points, 3))
    design[0, :, 0] = design[1, :, 2] = 1
    design[0, :, 1] = -x
    target = np.logaddexp(3 - 0.5 * x, 0.3) + 0.02 * rng.standard_t(3, points)
    starts = np.array([(a, b, c) for a in (0.0, 5.0) for b in (0.1, 1.0) for c in (-2.0, 1.0)])
    return design, target, starts


def residuals(theta: np.ndarray, design: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(design @ theta) - target


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(r)
    return np.where(size <= delta, r * r / 2, delta * (size - delta / 2))


def test_one_linear_term_is_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    matrix, y, w = rng.normal(size=(30, 3)), rng.normal(size=30), rng.uniform(0, 2, 30)
    found = engine.solve(matrix[None], y, np.zeros((1, 3)), weights=w)
    exact = np.linalg.solve(matrix.T @ (w[:, None] * matrix), matrix.T @ (w * y))
    np.testing.assert_allclose(found.parameters[0], exact, rtol=1e-10)
    np.testing.assert_allclose(found.objective[0], (w * (matrix @ exact - y) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.gram[0], matrix.T @ (w[:, None] * matrix), rtol=1e-12)
    assert found.converged[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("loss", "delta"), [("squared", 1.0), ("huber", 1e-2), ("huber", 1e-3)])
def test_never_worse_than_scipy_from_the_same_starts(seed: int, loss: engine.Loss, delta: float) -> None:
    design, target, starts = exponentials(40, seed)
    found = engine.solve(design, target, starts, loss=loss, delta=delta)

    def objective(theta: np.ndarray) -> float:
        r = residuals(theta, design, target)
        return float((r * r).sum() if loss == "squared" else huber(r, delta).sum())

    best = np.inf
    for start in starts:
        kind = "linear" if loss == "squared" else "huber"
        first = least_squares(residuals, start, loss=kind, f_scale=delta, args=(design, target), xtol=1e-14, ftol=1e-14)
        polished = minimize(objective, first.x, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16})
        best = min(best, objective(first.x), float(polished.fun))
    assert found.objective[0] <= best * (1 + 1e-9)
    np.testing.assert_allclose(found.objective[0], objective(found.parameters[0]), rtol=1e-10)


def test_absolute_loss_is_the_linear_programme() -> None:
    from scipy.optimize import linprog

    rng = np.random.default_rng(1)
    matrix, y = np.column_stack([np.ones(25), rng.normal(size=25)]), rng.standard_t(2, 25)
    found = engine.solve(matrix[None], y, np.zeros((1, 2)), loss="absolute")
    both = np.hstack([matrix, np.eye(25), -np.eye(25)])
    programme = linprog([0, 0, *[1] * 50], A_eq=both, b_eq=y, bounds=[(None, None)] * 2 + [(0, None)] * 50)
    np.testing.assert_allclose(found.objective[0], programme.fun, rtol=1e-7)
    np.testing.assert_allclose(found.parameters[0], programme.x[:2], atol=1e-6)


def test_many_problems_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(2)
    design, target, starts = exponentials(20, 5)
    targets = target + 0.01 * rng.normal(size=(6, 20))
    weights = rng.multinomial(20, np.ones(20) / 20, size=6).astype(float)
    designs = np.repeat(design[None], 6, axis=0)
    together = engine.solve(design, targets, starts, weights=weights, loss="huber")
    own_design = engine.solve(designs, targets, starts, weights=weights, loss="huber")
    for k in range(6):
        alone = engine.solve(design, targets[k], starts, weights=weights[k], loss="huber")
        np.testing.assert_allclose(together.parameters[k], alone.parameters[0], rtol=1e-8)
        np.testing.assert_allclose(own_design.parameters[k], alone.parameters[0], rtol=1e-8)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    design, target, starts = exponentials(20, 6)
    targets = target + 0.01 * np.random.default_rng(3).normal(size=(7, 20))
    whole = engine.solve(design, targets, starts)
    monkeypatch.setattr(newton, "_CACHE", 1)
    np.testing.assert_allclose(engine.solve(design, targets, starts).parameters, whole.parameters, rtol=1e-9)


def test_offset_and_weights_of_zero() -> None:
    """ln(x + 2 x^2) with the powers of x as offsets; a point of weight zero may hold anything."""
    x = np.array([0.5, 1.0, 2.0, 4.0])
    design = np.zeros((2, 4, 2))
    design[0, :, 0] = design[1, :, 1] = 1
    target = np.log(x + 2 * x * x)
    target[3] = 99.0
    offset = np.stack([np.log(x), 2 * np.log(x)])
    found = engine.solve(design, target, np.zeros((1, 2)), offset=offset, weights=np.array([1.0, 1, 1, 0]))
    np.testing.assert_allclose(np.exp(found.parameters[0]), [1, 2], rtol=1e-7)


@pytest.mark.skipif(not POINTS.is_file(), reason="the public points are not here")
class TestPublicPoints:
    """Minimum 1.01827402e-3 at E 1.8172, A 477.8, B 2143, alpha 0.3473, beta 0.3672."""

    @pytest.fixture(scope="class")
    def data(self) -> pd.DataFrame:
        frame = pd.read_csv(POINTS)
        return frame[frame["outlier"] == 0]

    @pytest.fixture(scope="class")
    def found(self, data: pd.DataFrame) -> engine.Fit:
        torch.set_num_threads(1)
        return parametric.fit_parametric(*(data[name].to_numpy() for name in ("params", "tokens", "loss")))

    def test_huber_from_the_papers_4500_starts(self, found: engine.Fit) -> None:
        assert len(parametric.starts()) == 4500
        assert found.objective[0] <= 1.018275e-3
        assert found.converged[0]
        k = {name: float(values[0]) for name, values in parametric.constants(found.parameters).items()}
        expected = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347311, "beta": 0.367172, "a": 0.513900}
        for name, value in expected.items():
            assert k[name] == pytest.approx(value, rel=2e-5), name

    def test_no_scipy_start_does_better(self, data: pd.DataFrame, found: engine.Fit) -> None:
        n, d, y = (np.log(data[name].to_numpy()) for name in ("params", "tokens", "loss"))

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            a, alpha, b, beta, e = theta
            terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
            prediction = np.logaddexp.reduce(terms)
            share = np.exp(terms - prediction)
            r = prediction - y
            psi = np.clip(r, -1e-3, 1e-3)
            gradient = [share[0] @ psi, -(share[0] * n) @ psi, share[1] @ psi, -(share[1] * d) @ psi, share[2] @ psi]
            return 1e4 * float(huber(r, 1e-3).sum()), 1e4 * np.array(gradient)

        rng = np.random.default_rng(0)
        options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10}
        grid = parametric.starts()[rng.choice(4500, 40, replace=False)]
        starts = [*grid, found.parameters[0] * (1 + 0.02 * rng.normal(size=5))]
        best = min(
            minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun / 1e4 for start in starts
        )
        assert found.objective[0] <= best * (1 + 1e-9)

    def test_least_absolute_deviations_are_the_published_fit(self, data: pd.DataFrame, found: engine.Fit) -> None:
        """In effect what Besiroglu et al. 2024 report: A 482.01, B 2085.43, E 1.8169, alpha 0.3478, beta 0.3658."""
        columns = (data[name].to_numpy() for name in ("params", "tokens", "loss"))
        absolute = parametric.fit_parametric(*columns, from_starts=found.optima[0][:4], kind="absolute")
        assert absolute.objective[0] <= 1.129498
        k = {name: float(values[0]) for name, values in parametric.constants(absolute.parameters).items()}
        assert [k["A"], k["B"]] == pytest.approx([482.01, 2085.43], rel=1e-4)
        assert [k["E"], k["alpha"], k["beta"]] == pytest.approx([1.8169, 0.3478, 0.3658], abs=1e-4)

    def test_bootstrap_over_runs_gives_the_published_errors(self, data: pd.DataFrame, found: engine.Fit) -> None:
        """Published, 4,000 replicates: alpha 0.0154, beta 0.0206, E 0.0257, a 0.020."""
        counts = np.random.default_rng(0).multinomial(240, np.ones(240) / 240, size=250).astype(float)
        columns = (data[name].to_numpy() for name in ("params", "tokens", "loss"))
        again = parametric.fit_parametric(*columns, weights=counts, from_starts=found.optima[0][:1])
        assert again.converged.all()
        k = parametric.constants(again.parameters)
        for name, value in {"alpha": 0.0154, "beta": 0.0206, "E": 0.0257, "a": 0.020}.items():
            assert float(np.std(k[name])) == pytest.approx(value, rel=0.2), name


def kaplan_curve(theta: torch.Tensor, ln_n: torch.Tensor, ln_d: torch.Tensor) -> torch.Tensor:
    """Kaplan et al. 2020, Eq. 1.5, at theta = (alpha_N/alpha_D ln N_c, alpha_N/alpha_D, ln D_c, alpha_D)."""
    a, ratio, c, alpha_d = theta
    return alpha_d * torch.logaddexp(a - ratio * ln_n, c - ln_d)


def kaplan_points() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """ln N and ln D, ln L by the paper's Table 2, and starts."""
    ln_n, ln_d = (g.ravel() for g in np.meshgrid(np.log(np.geomspace(1e6, 1e9, 6)), np.log(np.geomspace(1e8, 1e11, 5))))
    ln_loss = 0.103 * np.logaddexp(0.076 / 0.103 * (np.log(6.4e13) - ln_n), np.log(1.8e13) - ln_d)
    starts = [(r * 25.0, r, c, b) for r in (0.3, 0.8, 1.5) for c in (20.0, 30.0) for b in (0.05, 0.2)]
    return (ln_n, ln_d), ln_loss, np.array(starts)


def test_a_planted_curve_comes_back() -> None:
    data, ln_loss, starts = kaplan_points()
    found = engine.solve_curve(kaplan_curve, data, ln_loss, starts)
    a, ratio, c, alpha_d = found.parameters[0]
    assert found.converged[0]
    assert [alpha_d, ratio * alpha_d] == pytest.approx([0.103, 0.076], rel=1e-7)
    assert [np.exp(a / ratio), np.exp(c)] == pytest.approx([6.4e13, 1.8e13], rel=1e-5)


def test_a_curve_of_linear_terms_is_the_log_sum_exp() -> None:
    """Each problem with its own data, weights and target gives by torch.func what the closed derivatives give."""
    rng = np.random.default_rng(4)
    design, target, starts = exponentials(25, 1)
    targets, weights = target + 0.01 * rng.normal(size=(3, 25)), rng.uniform(0, 2, (3, 25))
    x = -design[0, :, 1] + 0.1 * rng.normal(size=(3, 25))
    designs = np.repeat(design[None], 3, axis=0)
    designs[:, 0, :, 1] = -x

    def curve(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(theta[0] - theta[1] * x, theta[2].expand_as(x))

    closed = engine.solve(designs, targets, starts, weights=weights, loss="huber", delta=1e-2)
    by_autograd = engine.solve_curve(curve, (x,), targets, starts, weights=weights, loss="huber", delta=1e-2)
    np.testing.assert_allclose(by_autograd.objective, closed.objective, rtol=1e-10)
    np.testing.assert_allclose(by_autograd.parameters, closed.parameters, rtol=1e-6)
    np.testing.assert_allclose(by_autograd.gram, closed.gram, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    design, target, starts = exponentials(40, 0)
    targets = target + 0.01 * np.random.default_rng(3).normal(size=(50, 40))
    cpu = engine.solve(design, targets, starts, loss="huber")
    cuda = engine.solve(design, targets, starts, loss="huber", device="cuda")
    np.testing.assert_allclose(cuda.objective, cpu.objective, rtol=1e-9)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu_on_a_curve() -> None:
    data, ln_loss, starts = kaplan_points()
    noisy = ln_loss + 0.01 * np.random.default_rng(0).normal(size=(20, len(ln_loss)))
    cpu = engine.solve_curve(kaplan_curve, data, noisy, starts)
    cuda = engine.solve_curve(kaplan_curve, data, noisy, starts, device="cuda")
    np.testing.assert_allclose(cuda.objective, cpu.objective, rtol=1e-9)
