"""The layers of stacked models: R runs of one shape computed together, on weights with a leading run axis.

Each function has the value and the gradients of the plain torch formula (tests hold them to it) and takes the fastest
way measured for the device and the size. No run touches another's numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.model import NORM_EPS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [R, n, i] times weight [R, i, o], plus bias [R, o]."""
    if bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(bias[:, None], x, weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of x [R, n, d] with weight and bias [R, d]."""
    return torch.addcmul(bias[:, None], F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), weight[:, None])


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm of x [R, n, d] with weight [R, d]."""
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight[:, None]


def embed(tokens: Tensor, table: Tensor) -> Tensor:
    """Rows of table [R, V, d] at tokens [R, b, n], as [R, b * n, d]."""
    runs = torch.arange(len(table), device=table.device)
    return table[runs[:, None], tokens.flatten(1)]


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation."""
    return F.gelu(x, approximate="tanh")


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [B, heads, n, d_head] of queries, keys and values of that shape, each position to itself and those
    before."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def head_losses(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Each run's summed cross-entropy [R] in nats, in float32, of the logits x [R, n, d] times table [R, V, d]
    transposed, at targets [R, n]. A token's loss is cut off at 87 nats, the logarithm of the smallest float."""
    return _SummedLosses.apply(torch.bmm(x, table.mT).float(), targets)


class _SummedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, -1)
        ctx.save_for_backward(probabilities, targets)
        chosen = probabilities.gather(-1, targets[..., None])
        return -chosen.clamp(min=torch.finfo(torch.float32).tiny).log().sum((1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        index = targets[..., None]
        probabilities.scatter_(-1, index, probabilities.gather(-1, index) - 1)  # not scatter_add_: it may be unordered
        return probabilities.mul_(gradient[:, None, None]), None
