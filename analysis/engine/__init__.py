"""One batched fitting engine: many problems x many starts x few parameters as one float64 tensor program.

Almost every law here is, in logarithms, a log-sum-exp of terms linear in the parameters,

    ln y_i = ln sum_t exp(offset[t, i] + sum_p design[t, i, p] theta_p),

for example the parametric law L = E + A/N^alpha + B/D^beta with theta = (ln A, alpha, ln B, beta, ln E), or the
trade-off S = S_min + E_min/B with theta = (ln S_min, ln E_min) and offset -ln B in its second term: `solve`. Laws of
another form, such as Kaplan's Eq. 1.5, ln L = alpha_D logsumexp(.., ..), are any differentiable torch function of
theta: `solve_curve`. Derivatives are exact in both, by closed form and by torch.func.

Robust losses are summed, never averaged, and no absolute tolerance enters (averaging is what stopped the published fit
of Hoffmann et al. 2022 early, see Besiroglu et al. 2024). How the minimum is found: `analysis.engine.newton`. This
package is the only part of `analysis` that needs torch, and imports it when a fit begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sweep.schema import InputError

if TYPE_CHECKING:
    import torch

    from analysis.engine.forms import Form
    from analysis.engine.newton import Objective

Loss = Literal["squared", "huber", "absolute"]

_TOLERANCE, _TOLERANCE_ABSOLUTE = 1e-9, 1e-6  # of the objective: what a Newton step from a minimum promises at most
_ITERATIONS = 500  # at most; most rows need ten to forty
_PRUNING = ((15, 512), (30, 48))  # of very many starts, only so many go on after so many iterations
_ENOUGH = 512  # points that tell good starts from bad ones, where there are more than twice as many
# Least absolute deviations is the limit of Huber's loss: the minimum is followed down this ladder.
_LADDER = (1e-2, 3e-4, 1e-5, 3e-7, 1e-8, 1e-9)


@dataclass(frozen=True)
class Fit:
    """Best fit of each problem.

    parameters: [problems, p]. objective: [problems], the unscaled weighted sum of r^2, of Huber's function (r^2/2
    inside delta, delta (|r| - delta/2) outside) or of |r|. converged: [problems], whether a Newton step from the
    solution promises no more than 1e-9 of the objective (for |r|, 1e-6 of Huber's function with delta 1e-9, whose
    minimum lies as near as that). gram: [problems, p, p], J' W J at the solution, whose inverse times the residual
    variance is the covariance for squared loss. optima: [problems, starts, p] and optima_objective [problems, starts]:
    where each surviving start ended, best first.
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
) -> Fit:
    """Fit ln y = logsumexp_t(offset[t] + design[t] @ theta) to `target` = ln y, each problem from each of its starts.

    design: [terms, points, p] shared by all problems, or [problems, terms, points, p]. offset: [terms, points].
    target: [points] or [problems, points]. weights: the same, at least 0 (0 leaves a point out).
    starts: [starts, p] shared, or [problems, starts, p].

    Raises InputError for a loss, a delta or a device that there is not.
    """
    from analysis.engine.forms import LogSumExp

    _refuse(loss, delta, device)
    design = np.asarray(design, dtype=np.float64)
    design = design[0] if design.ndim == 4 and len(design) == 1 else design
    offset = np.zeros(design.shape[-3:-1]) if offset is None else np.asarray(offset, dtype=np.float64)
    own = len(design) if design.ndim == 4 else 1

    def form(points: np.ndarray | slice) -> Form:
        return LogSumExp(design[..., points, :], offset[:, points], device)

    return _solve(form, own, target, starts, weights, loss, delta, device)


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
    from analysis.engine.forms import Curve

    _refuse(loss, delta, device)

    def form(points: np.ndarray | slice) -> Form:
        return Curve(curve, [d[..., points] for d in data], np.shape(starts)[-1], device)

    own = max(len(d) if np.ndim(d) == 2 else 1 for d in data)
    return _solve(form, own, target, starts, weights, loss, delta, device)


def _refuse(loss: str, delta: float, device: str) -> None:
    import torch

    if loss not in get_args(Loss):
        raise InputError(f"the loss function is one of {', '.join(get_args(Loss))}, not {loss!r}")
    if loss == "huber" and not (np.isfinite(delta) and delta > 0):
        raise InputError(f"delta of Huber's loss must be a positive number, not {delta:g}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device}: there is no CUDA device here; fit on the device 'cpu'")


def _solve(
    form: Callable[[np.ndarray | slice], Form],
    own: int,
    target: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray | None,
    loss: Loss,
    delta: float,
    device: str,
) -> Fit:
    """The best end of every problem's starts. form: the law at some of the points. own: problems of its data."""
    import torch

    from analysis.engine.forms import tensor
    from analysis.engine.newton import Objective

    y = np.atleast_2d(np.asarray(target, dtype=np.float64))
    w = np.ones((1, y.shape[1])) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    problems = max(own, len(y), len(w), len(starts) if np.ndim(starts) == 3 else 1)
    theta = tensor(starts, device).expand(problems, -1, -1)
    with torch.no_grad(), _one_thread_an_operation() as threads:
        huber = None if loss == "squared" else delta
        tolerance = _TOLERANCE_ABSOLUTE if loss == "absolute" else _TOLERANCE

        def objective_at(points: np.ndarray | slice) -> Objective:
            part = tensor(y[:, points], device), tensor(w[:, points], device)
            return Objective(form(points), *part, huber, tolerance, threads)

        objective = objective_at(slice(None))
        if theta.shape[1] > 2 * _PRUNING[-1][1]:
            many = y.shape[1] > 2 * _ENOUGH
            search = objective_at(_some_points(y.shape[1])) if many else objective
            for iterations, number in _PRUNING:
                if theta.shape[1] > 2 * number:
                    theta, value = _descend(search, theta, iterations)
                    theta, _ = _best(theta, value, number)
        for rung in _LADDER if loss == "absolute" else (objective.delta,):
            objective = replace(objective, delta=rung)
            theta, value = _descend(objective, theta, _ITERATIONS)
        if loss == "absolute":
            value = _blockwise(objective, theta, "absolute")
        theta, value = _best(theta, value, theta.shape[1])
        converged = _polish(objective, theta)
        name = "absolute" if loss == "absolute" else "value"
        value[:, :1] = _blockwise(objective, theta[:, :1], name)
        gram = _blockwise(objective, theta[:, :1], "gram")[:, 0]
    value = 2 * value if loss == "squared" else value
    found = theta[:, 0], value[:, 0], converged, gram, theta, value
    return Fit(*(a.cpu().numpy() for a in found))


def _some_points(number: int) -> np.ndarray:
    """`_ENOUGH` of so many, drawn by chance, the same each time: tables are sorted, a stride would meet patterns."""
    return np.sort(np.random.default_rng(number).choice(number, _ENOUGH, replace=False))


def _descend(objective: Objective, starts: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends [problems, starts, p] and their objectives [problems, starts]."""
    import torch

    from analysis.engine.newton import minimise

    problems, number, p = starts.shape
    problem = torch.arange(problems, device=starts.device).repeat_interleave(number)
    theta, value, _ = minimise(objective, starts.reshape(-1, p), problem, iterations)
    return theta.reshape(problems, number, p), torch.nan_to_num(value, nan=torch.inf).reshape(problems, number)


def _polish(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """Whether the first end of every problem is a minimum [problems]. Those that are not go on in place from where they
    are, as Newton's steps and then as damped ones: where a term dies away the way down is long and flat."""
    import torch

    from analysis.engine.newton import minimise

    rest = _blockwise(objective, theta[:, :1], "at_rest")[:, 0]
    for damping in (1e-8, 1e-2):
        problem = torch.nonzero(~rest)[:, 0]
        if len(problem):
            theta[problem, 0] = minimise(objective, theta[problem, 0], problem, _ITERATIONS, damping)[0]
            rest = _blockwise(objective, theta[:, :1], "at_rest")[:, 0]
    return rest


def _best(theta: torch.Tensor, value: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `number` lowest of every problem, lowest first."""
    import torch

    order = torch.argsort(value, dim=1, stable=True)[:, :number]
    return torch.gather(theta, 1, order[..., None].expand(-1, -1, theta.shape[-1])), torch.gather(value, 1, order)


def _blockwise(objective: Objective, theta: torch.Tensor, name: str) -> torch.Tensor:
    """A quantity of the bound objective at theta [problems, starts, p], in blocks that fit a working set."""
    import torch

    problems, number, p = theta.shape
    problem = torch.arange(problems, device=theta.device).repeat_interleave(number)
    blocks = zip(problem.split(objective.rows()), theta.reshape(-1, p).split(objective.rows()), strict=True)
    parts = [getattr(objective.bind(own), name)(at) for own, at in blocks]
    return torch.cat(parts).reshape(problems, number, *parts[0].shape[1:])


@contextlib.contextmanager
def _one_thread_an_operation() -> Iterator[int]:
    """Threads that share an operation wait for each other at its end, and where other processes hold the cores they
    wait long (measured: 15 times slower). The engine gives each thread rows of its own instead."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
