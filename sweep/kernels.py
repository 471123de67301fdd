"""The layers of stacked models: R runs of one shape computed together, on weights with a leading run axis.

Each function has the value and the gradients of the plain torch formula (tests hold them to it) and takes the fastest
way measured for the device and the size. No run touches another's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.model import NORM_EPS

LOGITS = {"cpu": 2**18, "cuda": 2**27}  # how many are held at a time: on a CPU what its second cache holds twice
LEAST_TOKENS = 64  # whose logits are held: with fewer the sum over tokens of the table's gradients takes the time
SMALL = 2**15  # elements below which the calls of a function in Python cost more than it saves
BLOCK = 2**16  # elements that several elementwise passes on a CPU go over while they are in the cache
_LEAST = math.log(torch.finfo(torch.float32).tiny)
_GELU = 2 * math.sqrt(2 / math.pi)
_LINEAR, _CUBIC, _ONE = torch.tensor(_GELU), _GELU * 0.044715, torch.tensor(1.0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [R, n, i] times weight [R, i, o], plus bias [R, o]."""
    if bias is None:
        return torch.bmm(x, weight)
    if len(x) == 1 and x.device.type != "cpu":  # CUDA adds the bias in the product's own kernel
        return torch.addmm(bias.squeeze(0), x.squeeze(0), weight.squeeze(0)).unsqueeze(0)
    return torch.baddbmm(bias[:, None], x, weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of x [R, n, d] with weight and bias [R, d]."""
    width = x.shape[-1:]
    if len(x) == 1:
        return F.layer_norm(x, width, weight.squeeze(0), bias.squeeze(0), NORM_EPS)
    one, zero = torch.ones_like(weight[0]), torch.zeros_like(bias[0])  # without them torch's CPU kernel takes twice
    return torch.addcmul(bias[:, None], F.layer_norm(x, width, one, zero, NORM_EPS), weight[:, None])


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm of x [R, n, d] with weight [R, d]."""
    if len(x) == 1:
        return F.rms_norm(x, x.shape[-1:], weight.squeeze(0), NORM_EPS)
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight[:, None]


def embed(tokens: Tensor, table: Tensor) -> Tensor:
    """Rows of table [R, V, d] at tokens [R, b, n], as [R, b * n, d]."""
    runs, vocab_size, d = table.shape
    rows = tokens.flatten(1)
    if runs > 1:
        rows = rows + torch.arange(0, runs * vocab_size, vocab_size, device=table.device)[:, None]
    return F.embedding(rows, table.reshape(-1, d))  # whose backward pass is ordered, while that of indexing is not


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation."""
    own = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= SMALL
    if not own or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x) if torch.is_grad_enabled() and x.requires_grad else _gelu(x, None)


class _Gelu(torch.autograd.Function):
    """Keeps the derivative, which shares its parts with the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        slope = torch.empty_like(x, memory_format=torch.contiguous_format)
        ctx.save_for_backward(slope)
        return _gelu(x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope.mul_(gradient)


def _gelu(x: Tensor, slope: Tensor | None) -> Tensor:
    """x sigmoid(x (a + b x²)), which is x (1 + tanh(x (a + b x²) / 2)) / 2; writes the derivative to `slope`. torch's
    own kernel takes six times what its tanh takes."""
    x = x.contiguous()
    value = torch.empty_like(x)
    parts = [part.view(-1).split(BLOCK) for part in (x, value, value if slope is None else slope)]
    for x_, value_, slope_ in zip(*parts, strict=True):
        gate = torch.addcmul(_LINEAR, x_, x_, value=_CUBIC).mul_(x_).sigmoid_()
        torch.mul(x_, gate, out=value_)
        if slope is not None:  # s + x s (1 - s) (a + 3 b x²)
            torch.addcmul(_LINEAR, x_, x_, value=3 * _CUBIC, out=slope_).mul_(value_)
            torch.lerp(slope_, _ONE, gate, out=slope_)
    return value


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [B, heads, n, d_head] of queries, keys and values of that shape, each position to itself and those
    before."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def head_losses(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Each run's summed cross-entropy [R] in nats, in float32, of the logits x [R, n, d] times table [R, V, d]
    transposed, at targets [R, n]. A token's loss is cut off at 87 nats, the logarithm of the smallest float."""
    if torch.is_grad_enabled() and (x.requires_grad or table.requires_grad):
        return _HeadLosses.apply(x, table, targets)
    return _head(x, table, targets, differentiate=False)[0]


class _HeadLosses(torch.autograd.Function):
    """Finds the gradients along with the losses, so that the logits are never held whole; torch's own formulas hold
    three arrays of their size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        losses, of_x, of_table = _head(x, table, targets, differentiate=True)
        ctx.save_for_backward(of_x, of_table)
        ctx.dtypes = x.dtype, table.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, table = (saved * gradient[:, None, None] for saved in ctx.saved_tensors)
        return x.to(ctx.dtypes[0]), table.to(ctx.dtypes[1]), None


def _head(x: Tensor, table: Tensor, targets: Tensor, differentiate: bool) -> list[Tensor]:
    """The losses [R]; with `differentiate` also the gradients of their sum by x and by the table."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, table = (value.to(torch.get_autocast_dtype(kind)) for value in (x, table))
    n, vocab_size = x.shape[1], table.shape[1]
    tokens = min(n, max(LEAST_TOKENS, LOGITS[kind] // vocab_size))
    rows = max(1, LOGITS[kind] // (tokens * vocab_size))
    done = []
    for x_, table_, targets_ in zip(x.split(rows), table.split(rows), targets.split(rows), strict=True):
        chosen, of_x, of_table = [], [], None
        for some, wanted in zip(x_.split(tokens, 1), targets_.split(tokens, 1), strict=True):
            probabilities, *slopes = _head_part(some, table_, wanted, differentiate)
            chosen.append(probabilities)
            if slopes:
                of_x.append(slopes[0])
                of_table = slopes[1] if of_table is None else of_table.add_(slopes[1])
        done.append([_joined(chosen, 1), *([_joined(of_x, 1), of_table] if differentiate else [])])
    chosen_all, *gradients = (_joined(column, 0) for column in zip(*done, strict=True))
    return [-chosen_all.log().clamp(min=_LEAST).sum((1, 2)), *gradients]


def _head_part(x: Tensor, table: Tensor, targets: Tensor, differentiate: bool) -> tuple[Tensor, ...]:
    """The targets' probabilities [R, n, 1] and the gradients by x and by the table, of logits held at once."""
    logits = torch.bmm(x, table.mT)
    in_place = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    probabilities = torch.softmax(logits, -1, dtype=torch.float32, out=logits if in_place else None)
    index = targets[..., None]
    chosen = probabilities.gather(-1, index)
    if not differentiate:
        return (chosen,)
    probabilities.scatter_(-1, index, chosen - 1)  # not scatter_add_: it may be unordered
    slopes = probabilities.to(x.dtype)
    return chosen, torch.bmm(slopes, table), torch.bmm(x.mT, slopes).float().mT


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
