"""One batched fitting engine: many problems x many starts x few parameters as one float64 tensor program.

Every law here is, in logarithms, a log-sum-exp of terms linear in the parameters,

    ln y_i = ln sum_t exp(offset[t, i] + sum_p design[t, i, p] theta_p),

for example the parametric law L = E + A/N^alpha + B/D^beta with theta = (ln A, alpha, ln B, beta, ln E), or the
trade-off S = S_min + E_min/B with theta = (ln S_min, ln E_min) and offset -ln B in its second term. Values, gradients
and Hessians are then exact, and all sums are positive by construction.

Laws of another form, such as Kaplan's Eq. 1.5, ln L = alpha_D logsumexp(.., ..), go through `solve_curve`, which takes
any differentiable torch function of theta and gets exact derivatives from torch.func.

Method: damped (Levenberg-Marquardt) steps, first Gauss-Newton with iteratively reweighted residuals, which travels
well from a poor start, then Newton with the exact Hessian, which ends quadratically; robust losses are summed, never
averaged, and no absolute tolerance enters (averaging is what stopped the published fit of Hoffmann et al. 2022 early,
see Besiroglu et al. 2024). This is the only module of `analysis` that needs torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Loss = Literal["squared", "huber", "absolute"]

_CHUNK = 12_000_000  # numbers in one intermediate tensor; bounds the memory at a few hundred MiB
_SMALL = 4_000_000  # numbers in the first evaluation below which one thread is used
_PRUNING = ((15, 512), (30, 48))  # of very many starts, only so many go on after so many iterations
# Least absolute deviations is the limit of Huber's loss: the minimum is followed down this ladder.
_ABSOLUTE_LADDER = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


@dataclass(frozen=True)
class Fit:
    """Best fit of each problem.

    parameters: [problems, p]. objective: [problems], the unscaled weighted sum of r^2, of Huber's function (r^2/2
    inside delta, delta (|r| - delta/2) outside) or of |r|. converged: [problems]. gram: [problems, p, p], J' W J at
    the solution, whose inverse times the residual variance is the covariance for squared loss. optima: [problems,
    starts, p] and optima_objective [problems, starts]: where each surviving start ended, best first.
    """

    parameters: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    gram: np.ndarray
    optima: np.ndarray
    optima_objective: np.ndarray


def solve(
    design: np.ndarray,
    target: np.ndarray,
    starts: np.ndarray,
    *,
    offset: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    loss: Loss = "squared",
    delta: float = 1e-3,
    device: str = "cpu",
    max_iterations: int = 500,
) -> Fit:
    """Fit ln y = logsumexp_t(offset[t] + design[t] @ theta) to `target` = ln y, each problem from each of its starts.

    design: [terms, points, p] shared by all problems, or [problems, terms, points, p]. offset: [terms, points].
    target: [points] or [problems, points]. weights: the same, at least 0 (0 leaves a point out).
    starts: [starts, p] shared, or [problems, starts, p].
    """
    design, target, starts = (np.asarray(a, dtype=np.float64) for a in (design, target, starts))
    weights = np.ones_like(target) if weights is None else np.asarray(weights, dtype=np.float64)
    offset = np.zeros(design.shape[-3:-1]) if offset is None else np.asarray(offset, dtype=np.float64)
    problems = max(
        len(design) if design.ndim == 4 else 1,
        len(target) if target.ndim == 2 else 1,
        len(weights) if weights.ndim == 2 else 1,
        len(starts) if starts.ndim == 3 else 1,
    )
    points = design.shape[-2]
    target = np.broadcast_to(target, (problems, points))
    weights = np.broadcast_to(weights, (problems, points))
    starts = np.broadcast_to(starts, (problems, *starts.shape[-2:]))
    arrays = design, offset, target, weights, starts
    with _threads(len(starts) * starts.shape[1] * design.shape[-3] * points):
        return _solve_in_chunks(arrays, loss, delta, device, max_iterations)


def solve_curve(
    curve: Callable[..., torch.Tensor],
    data: Sequence[np.ndarray],
    target: np.ndarray,
    starts: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    loss: Loss = "squared",
    delta: float = 1e-3,
    device: str = "cpu",
    max_iterations: int = 500,
) -> Fit:
    """Fit ln y = curve(theta, *data) to `target` = ln y, for laws that are no log-sum-exp of linear terms.

    curve: a torch function of theta [p] and of the data of one problem, each [points], that returns ln y [points]; it
    must be twice differentiable by torch.func (no in-place writes, no branches on values). data: arrays, [points]
    shared by all problems, or [problems, points]; they reach the curve as float64 tensors on `device`. Everything else
    as in `solve`. Kaplan's Eq. 1.5, for example, ln L = alpha_D ln((N_c/N)^(alpha_N/alpha_D) + D_c/D):

        def curve(theta, ln_n, ln_d):
            a, ratio, c, alpha_d = theta
            return alpha_d * torch.logaddexp(a - ratio * ln_n, c - ln_d)

        found = engine.solve_curve(curve, (np.log(params), np.log(tokens)), np.log(loss), starts)
    """
    target, starts = np.asarray(target, dtype=np.float64), np.asarray(starts, dtype=np.float64)
    weights = np.ones_like(target) if weights is None else np.asarray(weights, dtype=np.float64)
    columns = [np.asarray(d, dtype=np.float64) for d in data]
    problems = max(
        len(a) if a.ndim == d else 1 for a, d in [(starts, 3), *((a, 2) for a in (target, weights, *columns))]
    )
    rows = [np.broadcast_to(a, (problems, target.shape[-1])) for a in (target, weights, *columns)]
    starts = np.broadcast_to(starts, (problems, *starts.shape[-2:]))
    # A Hessian by forward over reverse mode holds a few p x p x points intermediates a row.
    step = max(1, _CHUNK // max(1, starts.shape[1] * starts.shape[2] ** 2 * target.shape[-1]))
    parts = []
    with _threads(starts.size * target.shape[-1]):
        for begin in range(0, problems, step):
            chunk = slice(begin, begin + step)
            y, w, *own = _tensors([a[chunk] for a in rows], device)
            problem = _Curve(y, w, None if loss == "squared" else delta, curve, tuple(own))
            parts.append(_solve_chunk(problem, starts[chunk], loss, device, max_iterations))
    return _join(parts)


def _tensors(arrays: Sequence[np.ndarray], device: str) -> list[torch.Tensor]:
    import torch

    return [torch.tensor(np.ascontiguousarray(a), dtype=torch.float64, device=device) for a in arrays]


@contextlib.contextmanager
def _threads(numbers: int) -> Iterator[None]:
    """One thread for small tensors: more gain nothing on them, and wait for each other at every operation where other
    processes hold the cores (measured: 15 times slower)."""
    import torch

    before = torch.get_num_threads()
    if numbers < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _solve_in_chunks(arrays: tuple[np.ndarray, ...], loss: Loss, delta: float, device: str, max_iterations: int) -> Fit:
    design, offset, target, weights, starts = arrays
    problems, points, p = len(starts), *design.shape[-2:]
    a_problem = starts.shape[1] * design.shape[-3] * points * (1 if design.ndim == 3 else p)
    step = max(1, _CHUNK // max(1, a_problem))
    parts = []
    for begin in range(0, problems, step):
        rows = slice(begin, begin + step)
        part = design if design.ndim == 3 else design[rows]
        x, o, y, w = _tensors((part, offset, target[rows], weights[rows]), device)
        problem = _LogSumExp(y, w, None if loss == "squared" else delta, x, o)
        parts.append(_solve_chunk(problem, starts[rows], loss, device, max_iterations))
    return _join(parts)


def _join(parts: list[Fit]) -> Fit:
    names = ("parameters", "objective", "converged", "gram", "optima", "optima_objective")
    return Fit(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _solve_chunk(problem: _Problem, starts: np.ndarray, loss: Loss, device: str, max_iterations: int) -> Fit:
    import torch

    theta = _tensors((starts,), device)[0]
    with torch.no_grad():
        for iterations, number in _PRUNING:
            if theta.shape[1] > 2 * number:
                theta, objective, _ = _minimise(problem, theta, iterations)
                keep = torch.topk(objective, number, dim=1, largest=False).indices
                theta = torch.gather(theta, 1, keep[..., None].expand(-1, -1, theta.shape[-1]))
        if loss == "absolute":
            for rung in _ABSOLUTE_LADDER:
                problem = replace(problem, delta=rung)
                theta, _, converged = _minimise(problem, theta, max_iterations)
            objective = problem.absolute(theta)
        else:
            theta, objective, converged = _minimise(problem, theta, max_iterations)
        order = torch.argsort(objective, dim=1)
        theta = torch.gather(theta, 1, order[..., None].expand_as(theta))
        objective, converged = torch.gather(objective, 1, order), torch.gather(converged, 1, order)
        gram = problem.gram(theta[:, 0])
    if loss == "squared":
        objective = 2 * objective
    return Fit(
        theta[:, 0].cpu().numpy(),
        objective[:, 0].cpu().numpy(),
        converged[:, 0].cpu().numpy(),
        gram.cpu().numpy(),
        theta.cpu().numpy(),
        objective.cpu().numpy(),
    )


@dataclass(frozen=True)
class _Problem:
    """Targets and weights of a chunk; the model is a subclass's. A row is one start of one problem."""

    y: torch.Tensor  # [P, n]
    w: torch.Tensor  # [P, n]
    delta: float | None  # of Huber's loss; None: squared

    def predict(self, theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """ln prediction [M, n] of rows with parameters [M, p]."""
        raise NotImplementedError

    def derivatives(
        self, theta: torch.Tensor, row: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """ln prediction [M, n], its Jacobian [M, n, p] and the function from coefficients [M, n] to the sum over points
        of coefficient times Hessian [M, p, p]."""
        raise NotImplementedError

    def evaluate(
        self, theta: torch.Tensor, row: torch.Tensor, newton: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Objective [M], gradient [M, p], Hessian [M, p, p] (exact where `newton`, else reweighted Gauss-Newton), and
        the diagonal [M, p] of the latter, which scales the damping."""
        import torch

        prediction, jacobian, curvature = self.derivatives(theta, row)
        y, w = self.y[row], self.w[row]
        r = prediction - y
        if self.delta is None:
            objective, psi, irls, inside = (w * r * r).sum(1) / 2, w * r, w, w
        else:
            size = r.abs()
            within = size <= self.delta
            rho = torch.where(within, r * r / 2, self.delta * (size - self.delta / 2))
            objective = (w * rho).sum(1)
            irls = w * torch.clamp(self.delta / size.clamp_min(1e-300), max=1.0)
            psi, inside = irls * r, w * within
        gradient = torch.einsum("mn,mnp->mp", psi, jacobian)
        diagonal = torch.einsum("mn,mnp->mp", irls, jacobian * jacobian)
        inner = torch.where(newton[:, None], inside, irls)
        hessian = jacobian.transpose(1, 2) @ (inner[..., None] * jacobian) + curvature(newton[:, None] * psi)
        return objective, gradient, hessian, diagonal

    def gram(self, theta: torch.Tensor) -> torch.Tensor:
        """J' W J [P, p, p] at one parameter vector a problem."""
        import torch

        row = torch.arange(len(theta), device=theta.device)
        jacobian = self.derivatives(theta, row)[1]
        return jacobian.transpose(1, 2) @ (self.w[row][..., None] * jacobian)

    def absolute(self, theta: torch.Tensor) -> torch.Tensor:
        """Sum of absolute residuals [P, K]."""
        import torch

        problems, starts, p = theta.shape
        row = torch.arange(problems, device=theta.device).repeat_interleave(starts)
        prediction = self.predict(theta.reshape(-1, p), row)
        return (self.w[row] * (prediction - self.y[row]).abs()).sum(1).reshape(problems, starts)


@dataclass(frozen=True)
class _LogSumExp(_Problem):
    x: torch.Tensor  # [T, n, p] or [P, T, n, p]
    offset: torch.Tensor  # [T, n]

    def _exponents(self, theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        import torch

        if self.x.ndim == 3:
            t, n, p = self.x.shape
            return (theta @ self.x.reshape(t * n, p).T).reshape(-1, t, n) + self.offset
        return torch.einsum("mtnp,mp->mtn", self.x[row], theta) + self.offset

    def predict(self, theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.logsumexp(self._exponents(theta, row), dim=1)

    def derivatives(
        self, theta: torch.Tensor, row: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        import torch

        z = self._exponents(theta, row)
        prediction = torch.logsumexp(z, dim=1)
        share = torch.exp(z - prediction[:, None])
        x = self.x if self.x.ndim == 3 else self.x[row]
        jacobian = torch.einsum("mtn,tnp->mnp" if x.ndim == 3 else "mtn,mtnp->mnp", share, x)

        def curvature(coefficient: torch.Tensor) -> torch.Tensor:
            weight = coefficient[:, None] * share
            if x.ndim == 3:
                t, n, p = x.shape
                flat = x.reshape(t * n, p)
                outer = (flat[:, :, None] * flat[:, None, :]).reshape(t * n, p * p)
                second = (weight.reshape(len(theta), t * n) @ outer).reshape(-1, p, p)
            else:
                flat = x.flatten(1, 2)
                second = flat.transpose(1, 2) @ (weight.flatten(1)[..., None] * flat)
            return second - jacobian.transpose(1, 2) @ (coefficient[..., None] * jacobian)

        return prediction, jacobian, curvature


@dataclass(frozen=True)
class _Curve(_Problem):
    curve: Callable[..., torch.Tensor]
    data: tuple[torch.Tensor, ...]  # each [P, n]

    def predict(self, theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.func.vmap(self.curve)(theta, *(d[row] for d in self.data))

    def derivatives(
        self, theta: torch.Tensor, row: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        import torch

        own = tuple(d[row] for d in self.data)
        jacobian = torch.func.vmap(torch.func.jacfwd(self.curve))(theta, *own)

        def weighted(one: torch.Tensor, coefficient: torch.Tensor, *columns: torch.Tensor) -> torch.Tensor:
            return (coefficient * self.curve(one, *columns)).sum()

        def curvature(coefficient: torch.Tensor) -> torch.Tensor:
            second: torch.Tensor = torch.func.vmap(torch.func.hessian(weighted))(theta, coefficient, *own)
            return second

        return self.predict(theta, row), jacobian, curvature


def _minimise(
    problem: _Problem, starts: torch.Tensor, max_iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Damped Newton from every start [P, K, p]. Returns parameters, objectives [P, K] and convergence [P, K]."""
    import torch

    problems, number, p = starts.shape
    theta = starts.reshape(-1, p).clone()
    row = torch.arange(problems, device=theta.device).repeat_interleave(number)
    live = torch.arange(len(theta), device=theta.device)
    newton = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    damping = torch.full((len(theta),), 1e-2, dtype=theta.dtype, device=theta.device)
    quiet = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
    converged = torch.zeros_like(newton)
    objective, gradient, hessian, diagonal = problem.evaluate(theta, row, newton)
    eye = torch.eye(p, dtype=theta.dtype, device=theta.device)
    for _ in range(max_iterations):
        if not len(live):
            break
        g, d = gradient[live], diagonal[live]
        floor = d.amax(1, keepdim=True) * 1e-12 + 1e-300
        damped = hessian[live] + eye * ((damping[live, None] * (d + floor) + floor)[:, None])
        factor, failed = torch.linalg.cholesky_ex(damped)
        factor = torch.where((failed > 0)[:, None, None], eye, factor)
        step = -torch.cholesky_solve(g[..., None], factor)[..., 0]
        trial = theta[live] + step
        values = problem.evaluate(trial, row[live], newton[live])
        better = (values[0] <= objective[live]) & (failed == 0) & torch.isfinite(values[0])
        gain = torch.where(better, objective[live] - values[0], torch.zeros_like(values[0]))
        kept = live[better]
        small_step = (step.abs() <= 1e-9 * (1e-3 + trial.abs())).all(1)
        theta[kept] = trial[better]
        for state, new in zip((objective, gradient, hessian, diagonal), values, strict=True):
            state[kept] = new[better]
        slow = gain <= 1e-12 * objective[live]
        # Two successive Newton steps that gain nothing, or a step lost in rounding, end a row.
        quiet[live] = torch.where(better & slow & newton[live], quiet[live] + 1, torch.where(better, 0, quiet[live]))
        ended = newton[live] & ((quiet[live] >= 2) | (small_step & (failed == 0)))
        newton[live] |= better & (gain < 3e-2 * objective[live])
        damping[live] = torch.where(better, damping[live] * 0.2, damping[live] * 8).clamp(1e-14, 1e14)
        stuck = damping[live] >= 1e13
        converged[live[ended]] = True
        live = live[~(ended | stuck)]
    shape = (problems, number)
    return theta.reshape(*shape, p), objective.reshape(shape), converged.reshape(shape)
