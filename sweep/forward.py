"""The forward passes of GPT-2 and Llama as functions of named parameters, lean enough for tiny models.

At the sizes of a scaling-law ladder the masks, caches and output wrappers of a general library cost as much as the
arithmetic. These functions compute the same logits from the same parameters (tests hold them to transformers' logits
and gradients) and know nothing of where the parameters live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.model import NORM_EPS, ROPE_THETA
from sweep.spec import ModelSpec

Weights = Mapping[str, Tensor]
Forward = Callable[[Weights, Tensor], Tensor]


class Parts(NamedTuple):
    """The three functions that a forward pass is made of. x is the residual stream, [sequences * n, d_model]."""

    embed: Callable[[Weights, Tensor], Tensor]  # (weights, tokens [sequences, n]) -> x
    block: Callable[[Weights, str, Tensor, torch.Size], Tensor]  # (weights, prefix of its names, x, tokens.shape) -> x
    head: Callable[[Weights, Tensor], Tensor]  # (weights, x) -> logits [sequences * n, vocab_size]
    blocks: str  # block i's weights are named `blocks` + "i." + ...


def forward_parts(spec: ModelSpec, device: str = "cpu") -> Parts:
    """The functions of a model of shape `spec`, on weights by transformers' names."""
    return _gpt2(spec) if spec.family == "gpt2" else _llama(spec, device)


def forward_function(spec: ModelSpec, device: str = "cpu") -> Forward:
    """A function (weights by transformers' names, tokens [sequences, n]) -> logits [sequences * n, vocab_size]."""
    embed, block, head, blocks = forward_parts(spec, device)

    def forward(w: Weights, tokens: Tensor) -> Tensor:
        x = embed(w, tokens)
        for i in range(spec.n_layer):
            x = block(w, f"{blocks}{i}.", x, tokens.shape)
        return head(w, x)

    return forward


def _gpt2(spec: ModelSpec) -> Parts:
    d, heads = spec.d_model, spec.n_head

    def norm(x: Tensor, w: Weights, name: str) -> Tensor:
        return F.layer_norm(x, (d,), w[name + ".weight"], w[name + ".bias"], NORM_EPS)

    def linear(x: Tensor, w: Weights, name: str) -> Tensor:  # transformers keeps GPT-2's matrices as [in, out]
        return torch.addmm(w[name + ".bias"], x, w[name + ".weight"])

    def embed(w: Weights, tokens: Tensor) -> Tensor:
        table, positions = w["transformer.wte.weight"], w["transformer.wpe.weight"]
        return (F.embedding(tokens, table) + positions[: tokens.shape[1]]).view(-1, d)

    def block(w: Weights, at: str, x: Tensor, shape: torch.Size) -> Tensor:
        b, t = shape
        qkv = linear(norm(x, w, at + "ln_1"), w, at + "attn.c_attn")
        q, k, v = qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(b * t, d), w, at + "attn.c_proj")
        y = F.gelu(linear(norm(x, w, at + "ln_2"), w, at + "mlp.c_fc"), approximate="tanh")
        return x + linear(y, w, at + "mlp.c_proj")

    def head(w: Weights, x: Tensor) -> Tensor:
        return F.linear(norm(x, w, "transformer.ln_f"), w["transformer.wte.weight"])

    return Parts(embed, block, head, "transformer.h.")


def _llama(spec: ModelSpec, device: str) -> Parts:
    d, heads, d_head = spec.d_model, spec.n_head, spec.d_head
    frequency = ROPE_THETA ** -(torch.arange(0, d_head, 2) / d_head)
    angle = torch.outer(torch.arange(spec.n_ctx).float(), frequency).repeat(1, 2).to(device)
    cos, sin = angle.cos(), angle.sin()

    def norm(x: Tensor, w: Weights, name: str) -> Tensor:
        return F.rms_norm(x, (d,), w[name + ".weight"], NORM_EPS)

    def split(x: Tensor, b: int, t: int) -> Tensor:
        return x.view(b, t, heads, d_head).transpose(1, 2)

    def rotate(x: Tensor, t: int) -> Tensor:  # Su et al. 2021 in the half-split order that transformers uses
        first, second = x.chunk(2, -1)
        return x * cos[:t].to(x.dtype) + torch.cat((-second, first), -1) * sin[:t].to(x.dtype)

    def embed(w: Weights, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, w["model.embed_tokens.weight"]).view(-1, d)

    def block(w: Weights, at: str, x: Tensor, shape: torch.Size) -> Tensor:
        b, t = shape
        y = norm(x, w, at + "input_layernorm")
        q, k, v = (split(F.linear(y, w[f"{at}self_attn.{n}_proj.weight"]), b, t) for n in "qkv")
        y = F.scaled_dot_product_attention(rotate(q, t), rotate(k, t), v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(b * t, -1), w[at + "self_attn.o_proj.weight"])
        y = norm(x, w, at + "post_attention_layernorm")
        y = F.silu(F.linear(y, w[at + "mlp.gate_proj.weight"])) * F.linear(y, w[at + "mlp.up_proj.weight"])
        return x + F.linear(y, w[at + "mlp.down_proj.weight"])

    def head(w: Weights, x: Tensor) -> Tensor:
        return F.linear(norm(x, w, "model.norm"), w["lm_head.weight"])

    return Parts(embed, block, head, "model.layers.")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [n] in nats of `logits` [n, vocab_size] at `targets` [n], in float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats of `logits` [n, vocab_size] at `targets` [n], in float32, for training."""
    return _SummedLoss.apply(logits.float(), targets)


class _SummedLoss(torch.autograd.Function):
    """Keeps one array of the logits' size where torch's own keeps and fills three, which at small models is 5% of a
    step on a CPU. A token's loss is cut off at 87 nats, the logarithm of the smallest float."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, -1)
        ctx.save_for_backward(probabilities, targets)
        chosen = probabilities.gather(1, targets[:, None])
        return -chosen.clamp(min=torch.finfo(torch.float32).tiny).log().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        index = targets[:, None]
        probabilities.scatter_(1, index, probabilities.gather(1, index) - 1)  # not scatter_add_: it may be unordered
        return probabilities.mul_(gradient), None
