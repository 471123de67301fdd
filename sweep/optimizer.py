"""Parameters, gradients and optimiser of one run.

All parameters of a run are views into one vector, and their gradients views into another: the norm, the clipping, the
update and the average of the weights are then one operation each instead of one for every matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sweep.spec import OptimizerSpec

T = TypeVar("T", bound=Tensor)

MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatWeights:
    """Named parameters as leaf views `weights` of the vector `values`, with gradients in the vector `gradients`.

    Matrices come first, so that `values[:decayed]` is what weight decay applies to. `loss` is a number beside the
    gradients: with them it makes up `totals`, what the ranks of a run add up.
    """

    def __init__(self, parameters: Mapping[str, Tensor], device: str) -> None:
        """Copies `parameters` to `device` in float32; order within matrices and vectors is kept."""
        ordered = matrices_first(parameters.items())
        self.shapes = {name: parameter.shape for name, parameter in ordered}
        self.decayed = sum(parameter.numel() for _, parameter in ordered if parameter.ndim >= 2)
        self.values = torch.cat([p.detach().reshape(-1).float() for _, p in ordered]).to(device)
        self.totals = torch.zeros(len(self.values) + 1, device=device)
        self.gradients, self.loss = self.totals[:-1], self.totals[-1]
        self.weights = {name: view.requires_grad_() for name, view in self.views(self.values).items()}
        for name, view in self.views(self.gradients).items():
            self.weights[name].grad = view

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector`, of the length of `values`, as named tensors that share its memory."""
        pieces = vector.detach().split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def matrices_first(parameters: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Named parameters in the order that the state's vectors hold them in."""
    return sorted(parameters, key=lambda item: item[1].ndim < 2)


def make_optimizer(spec: OptimizerSpec, flat: FlatWeights) -> torch.optim.Optimizer:
    """AdamW on the two parts of the vector, or Adafactor on the matrices and vectors one by one.

    Adafactor (Shazeer & Stern 2018) with external rates: no scaling by the parameter's size, updates clipped at root
    mean square 1, second moments factored with decay 1 - t^-0.8, first moment only where beta1 > 0.
    """
    if spec.name == "adamw":
        parts = flat.values[: flat.decayed], flat.values[flat.decayed :]
        parts[0].grad, parts[1].grad = flat.gradients[: flat.decayed], flat.gradients[flat.decayed :]
        return adamw(spec, *([part] for part in parts))
    from transformers.optimization import Adafactor

    matrices, vectors = ([w for w in flat.weights.values() if (w.ndim < 2) == small] for small in (False, True))
    return Adafactor(
        _groups(matrices, vectors, spec.weight_decay),
        lr=spec.lr,
        beta1=spec.beta1 or None,
        scale_parameter=False,
        relative_step=False,
    )


def adamw(spec: OptimizerSpec, matrices: Sequence[Tensor], vectors: Sequence[Tensor]) -> torch.optim.AdamW:
    """AdamW (fused) that decays the `matrices` only."""
    groups = _groups(matrices, vectors, spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def _groups(matrices: Sequence[Tensor], vectors: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@torch.no_grad()
def clip(gradients: Tensor, limit: float) -> Tensor:
    """Scale `gradients` in place to a Euclidean norm of at most `limit` (0: no limit); returns the norm before,
    as a tensor on the device."""
    norm = torch.linalg.vector_norm(gradients)
    if limit:
        gradients.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def local(tensor: Tensor) -> Tensor:
    """The rows of `tensor` that this rank holds: all, unless it is spread over ranks."""
    to_local = getattr(tensor, "to_local", None)  # DTensor's; the import of that class takes half a second
    return to_local() if to_local else tensor


def join_pieces(tensors: Iterable[Tensor]) -> Tensor:
    """What this rank holds of `tensors`, as one vector on the CPU."""
    return torch.cat([local(tensor).detach().reshape(-1).cpu() for tensor in tensors])


def moments(optimizer: torch.optim.AdamW) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """AdamW's two moments, each as a vector of what this rank holds of it, and its count of steps. Empty before the
    first step."""
    states = [optimizer.state[p] for p in _parameters(optimizer) if p in optimizer.state]
    if not states:
        return {}, {}
    vectors = {f"optimizer.{name}": join_pieces(state[name] for state in states) for name in MOMENTS}
    return vectors, {"optimizer.step": states[0]["step"].cpu()}


@torch.no_grad()
def restore_moments(optimizer: torch.optim.AdamW, vectors: Mapping[str, Tensor], step: Tensor) -> None:
    """Inverse of `moments`."""
    parameters = _parameters(optimizer)
    sizes = [local(p).numel() for p in parameters]
    for p in parameters:
        optimizer.state[p] = {"step": step.to(local(p).device, copy=True)}
    for name in MOMENTS:
        for p, piece in zip(parameters, vectors[f"optimizer.{name}"].split(sizes), strict=True):
            moment = torch.zeros_like(p)
            local(moment).copy_(piece.view(local(p).shape))
            optimizer.state[p][name] = moment


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adafactor's state as named tensors and plain numbers, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers[f"optimizer.{index}.{key}"] = value
    return tensors, numbers


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Inverse of `optimizer_tensors`: `saved` holds its tensors and numbers; other names are passed over."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in saved.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
