"""Damped Newton on many rows at once; a row is one start of one problem.

Levenberg-Marquardt steps: first Gauss-Newton with iteratively reweighted residuals, which travels well from a poor
start, then Newton with the exact Hessian, which ends quadratically. Rows stream through a working set small enough for
the processor's cache (as large as memory allows on CUDA): finished rows make room for waiting ones, so that few
stragglers never run alone for long, and several threads each take a share of the rows without waiting for one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch

from analysis.engine.forms import Bound, Form

_CACHE = 100_000  # numbers of the largest tensor of a working set on a CPU: 0.8 MB
_DEVICE = 30_000_000  # the same on CUDA
_MOST_ROWS = 8192  # small problems gain nothing from more on a CPU
_TINY = 1e-13  # of the objective: a predicted gain below this is rounding


@dataclass(frozen=True)
class Objective:
    """Weighted sum over points of r^2/2 or, with `delta`, of Huber's function of r = ln y - target."""

    form: Form
    target: torch.Tensor  # [P, n], or [1, n] shared by all problems
    weights: torch.Tensor  # [P, n] or [1, n]
    delta: float | None
    tolerance: float = 1e-9  # of the objective: where Newton promises no greater gain is a minimum
    threads: int = 1

    def bind(self, problem: torch.Tensor) -> BoundObjective:
        """On rows of these problems [M]."""
        y, w = (a[problem] if len(a) > 1 else a for a in (self.target, self.weights))
        return BoundObjective(self.form.bind(problem), y, w, self.delta, self.tolerance)

    def rows(self) -> int:
        """How many rows make a good working set."""
        if self.target.is_cuda:
            return max(1, _DEVICE // self.form.numbers)
        return min(_MOST_ROWS, max(16, _CACHE // self.form.numbers))


@dataclass(frozen=True)
class BoundObjective:
    """An objective on M rows."""

    form: Bound
    y: torch.Tensor
    w: torch.Tensor
    delta: float | None
    tolerance: float

    def evaluate(self, theta: torch.Tensor, newton: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Objective [M], gradient [M, p] and Hessian [M, p, p], exact where `newton`, else reweighted Gauss-Newton."""
        prediction, kept = self.form.predict(theta)
        r = prediction - self.y
        exact = int(newton.sum())
        if self.delta is None:
            psi = self.w * r
            value = (psi * r).sum(1) / 2
            inner = self.w.expand_as(r)
        else:
            clipped = r.clamp(-self.delta, self.delta)
            psi = self.w * clipped
            value = torch.add(r, clipped, alpha=-0.5).mul_(psi).sum(1)
            inner = self._inner(r, clipped, newton, exact)
        curved = None
        if exact:
            curved = psi if exact == len(newton) else psi * newton[:, None]
        return value, *self.form.derivatives(theta, kept, psi, inner, curved)

    def _inner(self, r: torch.Tensor, clipped: torch.Tensor, newton: torch.Tensor, exact: int) -> torch.Tensor:
        """Huber's second derivative where `newton`, else the weight that makes a square of it; times the weights."""
        assert self.delta is not None
        if exact:
            within = torch.eq(clipped, r, out=torch.empty_like(r)).mul_(self.w)
            if exact == len(newton):
                return within
        reweighted = r.abs().clamp_min_(self.delta).reciprocal_().mul_(self.delta).mul_(self.w)
        return torch.lerp(reweighted, within, newton[:, None].to(r.dtype)) if exact else reweighted

    def value(self, theta: torch.Tensor) -> torch.Tensor:
        """Objective [M]."""
        return self.evaluate(theta, torch.zeros_like(theta[:, 0], dtype=torch.bool))[0]

    def absolute(self, theta: torch.Tensor) -> torch.Tensor:
        """Weighted sum of |r| [M]."""
        return (self.w * (self.form.predict(theta)[0] - self.y).abs()).sum(1)

    def at_rest(self, theta: torch.Tensor) -> torch.Tensor:
        """Whether Newton's step from theta, all but undamped, promises no more than `tolerance` of the objective [M].

        Where the exact Hessian is not positive definite the reweighted one takes its place. This is the gradient's size
        in the one scale that matters, whatever way led here.
        """
        yes = torch.ones_like(theta[:, 0], dtype=torch.bool)
        value, gradient, hessian = self.evaluate(theta, yes)
        reweighted = self.evaluate(theta, ~yes)[2]
        scale = reweighted.diagonal(dim1=1, dim2=2)
        little = torch.full_like(value, 1e-10)
        step, solved = _solve(gradient, hessian, scale, little)
        other, solved_other = _solve(gradient, reweighted, scale, little)
        promised = -(gradient * torch.where(solved[:, None], step, other)).sum(1)
        # Where the fit is exact, residuals are rounding and so is the objective.
        rounding = self.w.sum(-1) * (1e-15 * (1 + self.y.abs().amax(-1))) ** 2
        return (solved | solved_other) & (promised <= self.tolerance * value + rounding)

    def gram(self, theta: torch.Tensor) -> torch.Tensor:
        """J' W J [M, p, p]."""
        prediction, kept = self.form.predict(theta)
        w = self.w.expand_as(prediction)
        return self.form.derivatives(theta, kept, torch.zeros_like(prediction), w, None)[1]


@dataclass
class _Rows:
    """Rows under way: where they belong, where they are and how they fare."""

    index: torch.Tensor
    theta: torch.Tensor
    objective: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    scale: torch.Tensor  # [M, p]: diagonal of the last Gauss-Newton Hessian, which scales the damping
    damping: torch.Tensor
    newton: torch.Tensor
    quiet: torch.Tensor  # successive steps that promised no gain
    age: torch.Tensor
    ended: torch.Tensor  # at a minimum
    over: torch.Tensor  # ended, stuck or out of iterations

    def only(self, kept: torch.Tensor) -> _Rows:
        return _Rows(*(getattr(self, f.name)[kept] for f in fields(self)))

    def and_also(self, others: _Rows) -> _Rows:
        return _Rows(*(torch.cat([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self)))


def minimise(
    objective: Objective, starts: torch.Tensor, problem: torch.Tensor, iterations: int, damping: float = 1e-2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From every start [R, p] of its problem [R], at most so many iterations. Returns theta [R, p], objective [R] and
    whether the row came to rest [R]. damping: of the first step; below 1e-4 steps are Newton's from the first."""
    theta = starts.clone()
    value = torch.full_like(theta[:, 0], torch.inf)
    ended = torch.zeros_like(problem, dtype=torch.bool)
    rows = objective.rows()
    workers = 1 if theta.is_cuda else min(objective.threads, -(-2 * len(theta) // rows))

    def work(worker: int) -> None:
        # Gradients are a thread's own setting, so it is switched off in each.
        with torch.no_grad():
            waiting = torch.arange(worker, len(theta), workers, device=theta.device)
            for done in _stream(objective, theta, problem, waiting, rows, iterations, damping):
                theta[done.index], value[done.index], ended[done.index] = done.theta, done.objective, done.ended

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return theta, value, ended


def _stream(
    objective: Objective,
    starts: torch.Tensor,
    problem: torch.Tensor,
    waiting: torch.Tensor,
    most: int,
    iterations: int,
    damping: float,
) -> Iterator[_Rows]:
    """Rows as they finish; what is done is taken out when a quarter of the working set is."""
    rows = _begin(objective, starts, problem, waiting[:most], damping)
    waiting = waiting[most:]
    bound = objective.bind(problem[rows.index])
    while len(rows.index):
        _step(rows, bound, iterations)
        over = int(rows.over.sum())
        if 4 * over < len(rows.index):
            continue
        yield rows.only(rows.over)
        rows = rows.only(~rows.over)
        if len(waiting):
            room = most - len(rows.index)
            rows = rows.and_also(_begin(objective, starts, problem, waiting[:room], damping))
            waiting = waiting[room:]
        bound = objective.bind(problem[rows.index])


def _begin(
    objective: Objective, starts: torch.Tensor, problem: torch.Tensor, index: torch.Tensor, damping: float
) -> _Rows:
    theta = starts[index]
    no = torch.zeros_like(index, dtype=torch.bool)
    value, gradient, hessian = objective.bind(problem[index]).evaluate(theta, no)
    scale = hessian.diagonal(dim1=1, dim2=2).clone()
    newton = torch.full_like(no, damping < 1e-4)
    size, count = torch.full_like(value, damping), torch.zeros_like(index)
    return _Rows(index, theta, value, gradient, hessian, scale, size, newton, count, count, no, no)


def _step(rows: _Rows, bound: BoundObjective, iterations: int) -> None:
    """One damped step of every row, taken where it does not raise the objective."""
    step, solved = _solve(rows.gradient, rows.hessian, rows.scale, rows.damping)
    promised = -(rows.gradient * step).sum(1)
    trial = rows.theta + step
    value, gradient, hessian = bound.evaluate(trial, rows.newton)
    better = solved & (value <= rows.objective)
    slow = better & (rows.objective - value < 3e-2 * rows.objective)
    tiny = solved & rows.newton & (promised <= _TINY * rows.objective)
    small = solved & (step.abs() <= 1e-14 * (1e-3 + trial.abs())).all(1)
    rows.scale = torch.where((better & ~rows.newton)[:, None], hessian.diagonal(dim1=1, dim2=2), rows.scale)
    rows.theta = torch.where(better[:, None], trial, rows.theta)
    rows.objective = torch.where(better, value, rows.objective)
    rows.gradient = torch.where(better[:, None], gradient, rows.gradient)
    rows.hessian = torch.where(better[:, None, None], hessian, rows.hessian)
    rows.quiet = torch.where(tiny, rows.quiet + 1, 0)
    rows.ended = rows.ended | (rows.newton & ((rows.quiet >= 2) | small))
    rows.newton = rows.newton | slow
    rows.damping = (rows.damping * torch.where(better, 0.2, 8.0)).clamp(1e-14, 1e14)
    rows.age = rows.age + 1
    rows.over = rows.over | rows.ended | (rows.damping >= 1e13) | (rows.age >= iterations)


def _solve(
    gradient: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, damping: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Step [M, p] against the gradient, and whether the damped Hessian was positive definite [M]."""
    floor = scale.amax(1, keepdim=True) * 1e-12 + 1e-300
    damped = hessian.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping[:, None] * (scale + floor) + floor)
    factor, failed = torch.linalg.cholesky_ex(damped)
    solved = failed == 0
    factor = torch.where(
        solved[:, None, None], factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    )
    return -torch.cholesky_solve(gradient[..., None], factor)[..., 0], solved
