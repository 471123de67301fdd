"""Optimisers of stacked runs, on the flat vectors that hold each run's parameters and gradients.

An update concerns some neighbouring rows, since runs of different batch sizes are due at different times; every row has
its own rate, betas, decay and count of updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from sweep.spec import OptimizerSpec

T = TypeVar("T", bound=Tensor)

MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatWeights:
    """The named parameters of R runs as leaf views `weights`, [R, *shape], of the rows of `values` [R, P], and their
    gradients as views `slopes` of the rows of `gradients` [R, P].

    Matrices come first, so that `values[:, :decayed]` is what weight decay applies to.
    """

    def __init__(self, runs: Sequence[Mapping[str, Tensor]], device: str) -> None:
        """Copies the parameters of each run to `device` in float32; order within matrices and vectors is kept."""
        ordered = [matrices_first(parameters.items()) for parameters in runs]
        self.shapes = {name: parameter.shape for name, parameter in ordered[0]}
        self.decayed = sum(shape.numel() for shape in self.shapes.values() if len(shape) >= 2)
        rows = [torch.cat([p.detach().reshape(-1).float() for _, p in parameters]) for parameters in ordered]
        self._hold(torch.stack(rows).to(device))

    def _hold(self, values: Tensor) -> None:
        self.values, self.gradients = values, torch.zeros_like(values)
        self.weights = {name: view.requires_grad_() for name, view in self.views(values).items()}
        self.slopes = self.views(self.gradients)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the number `loss`."""
        found = torch.autograd.grad(loss, list(self.weights.values()))
        torch._foreach_add_(list(self.slopes.values()), list(found))

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows like those of `values`, [k, P], as named tensors [k, *shape] that share their memory."""
        pieces = rows.detach().split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.unflatten(1, shape) for (name, shape), piece in named}

    def keep(self, rows: Sequence[int]) -> None:
        """Hold these rows only, in this order, with gradients as they were."""
        gradients = self.gradients[list(rows)]
        self._hold(self.values[list(rows)])
        self.gradients.copy_(gradients)


def matrices_first(parameters: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Named parameters in the order that the state's vectors hold them in."""
    return sorted(parameters, key=lambda item: item[1].ndim < 2)


class Optimizer(Protocol):
    """What changes the values of FlatWeights."""

    def step(self, rows: slice, lr: Sequence[float]) -> None:
        """Update the runs of `rows` at rates `lr`. The gradients may be used up."""

    def state(self, row: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What further steps of one run depend on: tensors and plain numbers."""

    def restore(self, row: int, saved: Mapping[str, Any]) -> None:
        """Inverse of `state`: `saved` holds its tensors and numbers, nothing before the first step."""

    def keep(self, rows: Sequence[int]) -> None:
        """Follow FlatWeights.keep."""


def make_optimizer(specs: Sequence[OptimizerSpec], flat: FlatWeights) -> Optimizer:
    """The optimiser of runs with these settings, one a row; Adafactor takes one run only."""
    if specs[0].name == "adamw":
        return AdamW(specs, flat)
    [spec] = specs
    return Adafactor(spec, flat)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2) on rows.

    As torch.optim.AdamW computes it, which takes one rate and one pair of betas for all it updates, and imports torch's
    compiler when it is made.
    """

    def __init__(self, specs: Sequence[OptimizerSpec], flat: FlatWeights) -> None:
        self.specs, self.flat = list(specs), flat
        self.moments = {name: torch.zeros_like(flat.values) for name in MOMENTS}
        self.steps = [0] * len(specs)
        self._fix()

    def _fix(self) -> None:
        """The coefficients that do not change, [R, 1] each."""
        named = [(1 - s.beta1, s.beta2, 1 - s.beta2, s.eps) for s in self.specs]
        self.fixed = torch.tensor(named, device=self.flat.values.device).T[..., None]

    @torch.no_grad()
    def step(self, rows: slice, lr: Sequence[float]) -> None:
        chosen = range(len(self.specs))[rows]
        for row in chosen:
            self.steps[row] += 1
        if len(chosen) == 1 or self.flat.values.device.type == "cpu":
            for row, rate in zip(chosen, lr, strict=True):
                self._one(row, rate)
        else:  # calls are what a GPU spends its time on
            self._several(rows, lr)

    def _one(self, row: int, lr: float) -> None:
        """torch's fused kernel: one pass over the memory."""
        spec, values = self.specs[row], self.flat.values[row]
        if spec.weight_decay:
            values[: self.flat.decayed].mul_(1 - lr * spec.weight_decay)
        before = torch.full((), self.steps[row] - 1.0, device=values.device)
        mean, square = (self.moments[name][row] for name in MOMENTS)
        torch_adamw(
            [values],
            [self.flat.gradients[row]],
            [mean],
            [square],
            [],
            [before],
            fused=True,
            amsgrad=False,
            beta1=spec.beta1,
            beta2=spec.beta2,
            lr=lr,
            weight_decay=0.0,
            eps=spec.eps,
            maximize=False,
        )

    def _several(self, rows: slice, lr: Sequence[float]) -> None:
        """The same arithmetic, each of its lines for all rows at once."""
        new1, old2, new2, eps = self.fixed[:, rows]
        values, g = self.flat.values[rows], self.flat.gradients[rows]
        mean, square = (self.moments[name][rows] for name in MOMENTS)
        sizes, roots, kept = to_device(self._coefficients(rows, lr), g.device)[..., None]
        values[:, : self.flat.decayed].mul_(kept)
        mean.lerp_(g, new1)
        square.mul_(old2).addcmul_(g.mul_(g), new2)
        torch.sqrt(square, out=g)
        torch.div(mean, g.mul_(roots).add_(eps), out=g)
        values.addcmul_(g, sizes, value=-1)

    def _coefficients(self, rows: slice, lr: Sequence[float]) -> list[list[float]]:
        """Sizes of the steps, reciprocal roots of the second moments' bias, and what the decay leaves, of each run."""
        known = list(zip(self.specs[rows], self.steps[rows], lr, strict=True))
        return [
            [rate / (1 - spec.beta1**step) for spec, step, rate in known],
            [(1 - spec.beta2**step) ** -0.5 for spec, step, _ in known],
            [1 - rate * spec.weight_decay for spec, _, rate in known],
        ]

    def state(self, row: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.steps[row]:
            return {}, {}
        count = {"optimizer.step": torch.tensor(float(self.steps[row]))}
        return count | {f"optimizer.{name}": moment[row] for name, moment in self.moments.items()}, {}

    @torch.no_grad()
    def restore(self, row: int, saved: Mapping[str, Any]) -> None:
        if "optimizer.step" in saved:
            self.steps[row] = int(saved["optimizer.step"])
            for name, moment in self.moments.items():
                moment[row] = saved[f"optimizer.{name}"]

    def keep(self, rows: Sequence[int]) -> None:
        self.moments = {name: moment[list(rows)] for name, moment in self.moments.items()}
        self.specs, self.steps = [self.specs[i] for i in rows], [self.steps[i] for i in rows]
        self._fix()


class Adafactor:
    """Adafactor (Shazeer & Stern 2018) of one run with external rates: no scaling by the parameter's size, updates
    clipped at root mean square 1, second moments factored with decay 1 - t^-0.8, first moment only where beta1 > 0."""

    def __init__(self, spec: OptimizerSpec, flat: FlatWeights) -> None:
        from transformers.optimization import Adafactor as Theirs

        parameters = [weight.detach()[0] for weight in flat.weights.values()]
        for p, slope in zip(parameters, flat.slopes.values(), strict=True):
            p.grad = slope[0]
        matrices, vectors = ([p for p in parameters if (p.ndim < 2) == small] for small in (False, True))
        groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer: Any = Theirs(
            groups, lr=spec.lr, beta1=spec.beta1 or None, scale_parameter=False, relative_step=False
        )

    def step(self, rows: slice, lr: Sequence[float]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr[0]
        self.optimizer.step()

    def state(self, row: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"optimizer.{index}.{key}"] = value
        return tensors, numbers

    def restore(self, row: int, saved: Mapping[str, Any]) -> None:
        state: dict[int, dict[str, Any]] = {}
        for name, value in saved.items():
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == [0], rows


@torch.no_grad()
def clip(gradients: Tensor, limits: Sequence[float]) -> Tensor:
    """Scale the rows of `gradients` [k, P] in place to a Euclidean norm of at most `limits` (0: no limit); returns the
    norms [k] before, on the device."""
    norms = torch.linalg.vector_norm(gradients, dim=1)
    if any(limits):
        bounds = to_device([limit or math.inf for limit in limits], gradients.device)
        gradients.mul_((bounds / (norms + 1e-6)).clamp(max=1.0)[:, None])
    return norms


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """A tensor of `numbers` on `device`, without waiting for the device."""
    if device.type == "cpu":
        return torch.tensor(numbers)
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)
