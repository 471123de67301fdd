"""Parameters, gradients and optimiser of one run.

All parameters of a run are views into one vector, and their gradients views into another: the norm, the clipping, the
update and the average of the weights are then one operation each instead of one for every matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sweep.spec import OptimizerSpec


class FlatWeights:
    """Named parameters as leaf views `weights` of the vector `values`, with gradients in the vector `gradients`.

    Matrices come first, so that `values[:decayed]` is what weight decay applies to.
    """

    def __init__(self, parameters: Mapping[str, Tensor], device: str) -> None:
        """Copies `parameters` to `device` in float32; order within matrices and vectors is kept."""
        ordered = sorted(parameters.items(), key=lambda item: item[1].ndim < 2)
        self.shapes = {name: parameter.shape for name, parameter in ordered}
        self.decayed = sum(parameter.numel() for _, parameter in ordered if parameter.ndim >= 2)
        self.values = torch.cat([p.detach().reshape(-1).float() for _, p in ordered]).to(device)
        self.gradients = torch.zeros_like(self.values)
        self.weights = {name: view.requires_grad_() for name, view in self.views(self.values).items()}
        for name, view in self.views(self.gradients).items():
            self.weights[name].grad = view

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector`, of the length of `values`, as named tensors that share its memory."""
        pieces = vector.detach().split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def make_optimizer(spec: OptimizerSpec, flat: FlatWeights) -> torch.optim.Optimizer:
    """AdamW (fused) on the two parts of the vector, or Adafactor on the matrices and vectors one by one.

    Adafactor (Shazeer & Stern 2018) with external rates: no scaling by the parameter's size, updates clipped at root
    mean square 1, second moments factored with decay 1 - t^-0.8, first moment only where beta1 > 0.
    """
    if spec.name == "adafactor":
        from transformers.optimization import Adafactor

        parts = [[], []]  # type: list[list[Tensor]]
        for weight in flat.weights.values():
            parts[weight.ndim < 2].append(weight)
        return Adafactor(
            _groups(parts, spec.weight_decay),
            lr=spec.lr,
            beta1=spec.beta1 or None,
            scale_parameter=False,
            relative_step=False,
        )
    parts = [[flat.values[: flat.decayed]], [flat.values[flat.decayed :]]]
    for (part,), gradients in zip(parts, flat.gradients.split([len(p) for (p,) in parts]), strict=True):
        part.grad = gradients
    return torch.optim.AdamW(
        _groups(parts, spec.weight_decay), lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True
    )


def _groups(parts: list[list[Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    matrices, vectors = parts
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@torch.no_grad()
def clip(gradients: Tensor, limit: float) -> Tensor:
    """Scale `gradients` in place to a Euclidean norm of at most `limit` (0: no limit); returns the norm before,
    as a tensor on the device."""
    norm = torch.linalg.vector_norm(gradients)
    if limit:
        gradients.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as named tensors and plain numbers, for a checkpoint."""
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
