"""The batched engine against closed forms and itself: batches, threads, devices. Beside scipy: `test_laws`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from analysis import engine
from analysis.engine import forms, newton
from sweep.schema import InputError


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


def test_one_linear_term_is_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    matrix, y, w = rng.normal(size=(30, 3)), rng.normal(size=30), rng.uniform(0, 2, 30)
    found = engine.solve(matrix[None], y, np.zeros((1, 3)), weights=w)
    exact = np.linalg.solve(matrix.T @ (w[:, None] * matrix), matrix.T @ (w * y))
    np.testing.assert_allclose(found.parameters[0], exact, rtol=1e-10)
    np.testing.assert_allclose(found.objective[0], (w * (matrix @ exact - y) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.gram[0], matrix.T @ (w[:, None] * matrix), rtol=1e-12)
    assert found.converged[0]


def test_absolute_loss_is_the_linear_programme() -> None:
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


def test_working_sets_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of 16 rows, through which the rows of 12 problems stream, one set or two at a time."""
    design, target, starts = exponentials(20, 6)
    targets = target + 0.01 * np.random.default_rng(3).normal(size=(12, 20))
    whole = engine.solve(design, targets, starts, loss="huber")
    monkeypatch.setattr(newton, "_CACHE", 1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        parts = engine.solve(design, targets, starts, loss="huber")
        assert torch.get_num_threads() == threads
        assert parts.converged.all()
        np.testing.assert_allclose(parts.parameters, whole.parameters, rtol=1e-8)
        again = engine.solve(design, targets, starts, loss="huber")
        np.testing.assert_array_equal(again.parameters, parts.parameters)


def test_converged_is_said_of_minima_only() -> None:
    design, target, starts = exponentials(40, 7)
    minimum = torch.tensor(engine.solve(design, target, starts, loss="huber").parameters)
    form = forms.LogSumExp(design, np.zeros(design.shape[:2]), "cpu")
    ones = torch.ones(1, 40, dtype=torch.float64)
    bound = newton.Objective(form, torch.tensor(target[None]), ones, 1e-3).bind(torch.zeros(5, dtype=torch.long))
    away = torch.tensor([0.0, 1e-9, 1e-4, 1e-2, 1.0], dtype=torch.float64)[:, None]
    assert bound.at_rest(minimum + away).tolist() == [True, True, False, False, False]


def test_a_start_that_overflows_is_passed_over() -> None:
    design, target, starts = exponentials(20, 8)
    wild = np.array([[1e300, -1e300, 0.0], [np.nan, 0.0, 0.0]])
    found = engine.solve(design, target, np.concatenate([wild, starts]))
    np.testing.assert_allclose(found.objective, engine.solve(design, target, starts).objective, rtol=1e-12)
    assert found.converged[0]
    assert np.isinf(found.optima_objective[0, -1])


def test_a_term_that_dies_away_is_a_minimum_too() -> None:
    """Points that bend the wrong way for an offset above 0: the best one is none, far down a flat slope."""
    x = np.linspace(0, 8, 12)
    design = np.zeros((2, 12, 3))
    design[0, :, 0] = design[1, :, 2] = 1
    design[0, :, 1] = x
    target = 1 - 0.3 * x - 0.02 * x * x
    for loss in ("squared", "huber"):
        found = engine.solve(design, target, np.array([[1.0, -0.3, -1.0], [1.0, -0.5, -2.0]]), loss=loss)
        alone = engine.solve(design[:1, :, :2], target, np.array([[1.0, -0.3]]), loss=loss)
        assert found.converged[0]
        assert found.parameters[0, 2] < -10
        np.testing.assert_allclose(found.objective, alone.objective, rtol=1e-6)


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


def test_a_loss_or_a_device_that_there_is_not_is_refused() -> None:
    design, target, starts = exponentials(20, 0)
    with pytest.raises(InputError, match="squared, huber, absolute, not 'cauchy'"):
        engine.solve(design, target, starts, loss="cauchy")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            engine.solve(design, target, starts, device="cuda")


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


@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_many_starts_are_weighed_on_some_of_many_points(loss: engine.Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    design, target, few = exponentials(1100, 3)
    rng = np.random.default_rng(0)
    starts = np.concatenate([few[3:4], rng.uniform((-5, -1, -5), (10, 3, 5), (200, 3))])
    found = engine.solve(design, target, starts, loss=loss)
    monkeypatch.setattr(engine, "_ENOUGH", 10**6)
    whole = engine.solve(design, target, starts, loss=loss)
    assert found.converged[0]
    np.testing.assert_allclose(found.objective, whole.objective, rtol=1e-11)
    np.testing.assert_allclose(found.parameters, whole.parameters, rtol=1e-7)
