"""The forward passes of GPT-2 and Llama as functions of named parameters, lean enough for tiny models, for R models of
one shape at once.

At the sizes of a scaling-law ladder the masks, caches and output wrappers of a general library cost as much as the
arithmetic, and the calls of one small model as much as those of ten. Every weight here has a leading run axis: the
parameter [in, out] of R runs is a tensor [R, in, out], and each run's results come from its own weights and tokens
alone. Tests hold each run to transformers' logits and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.kernels import causal_attention, embed, gelu, head_losses, layer_norm, linear, rms_norm
from sweep.model import ROPE_THETA
from sweep.spec import ModelSpec

Weights = Mapping[str, Tensor]  # by transformers' names, [R, *shape]
Shape = tuple[int, int, int]  # runs, sequences of each, tokens of a sequence
Forward = Callable[[Weights, Tensor], Tensor]


class Parts(NamedTuple):
    """The functions that a forward pass is made of. x is the residual stream, [R, sequences * n, d_model]."""

    embed: Callable[[Weights, Tensor], Tensor]  # (weights, tokens [R, sequences, n]) -> x
    block: Callable[[Weights, str, Tensor, Shape], Tensor]  # (weights, prefix of its names, x, shape of tokens) -> x
    head: Callable[[Weights, Tensor], Tensor]  # (weights, x) -> logits [R, sequences * n, vocab_size]
    losses: Callable[[Weights, Tensor, Tensor], Tensor]  # (weights, x, targets [R, sequences * n]) -> sums [R] in nats
    blocks: str  # block i's weights are named `blocks` + "i." + ...


def forward_parts(spec: ModelSpec, device: str = "cpu") -> Parts:
    """The functions of models of shape `spec`, on weights by transformers' names."""
    return _gpt2(spec) if spec.family == "gpt2" else _llama(spec, device)


def forward_function(spec: ModelSpec, device: str = "cpu") -> Forward:
    """A function (weights, tokens [R, sequences, n]) -> logits [R, sequences * n, vocab_size]."""
    parts = forward_parts(spec, device)
    return lambda w, tokens: parts.head(w, _stream(parts, spec.n_layer, w, tokens))


def loss_function(spec: ModelSpec, device: str = "cpu") -> Callable[[Weights, Tensor, Tensor], Tensor]:
    """A function (weights, tokens [R, sequences, n], targets of the same shape) -> summed cross-entropies [R] in nats,
    in float32."""
    parts = forward_parts(spec, device)

    def losses(w: Weights, tokens: Tensor, targets: Tensor) -> Tensor:
        return parts.losses(w, _stream(parts, spec.n_layer, w, tokens), targets.flatten(1))

    return losses


def _stream(parts: Parts, n_layer: int, w: Weights, tokens: Tensor) -> Tensor:
    """The residual stream after the last block."""
    runs, sequences, n = tokens.shape
    x = parts.embed(w, tokens)
    for i in range(n_layer):
        x = parts.block(w, f"{parts.blocks}{i}.", x, (runs, sequences, n))
    return x


def _gpt2(spec: ModelSpec) -> Parts:
    d, heads = spec.d_model, spec.n_head

    def norm(x: Tensor, w: Weights, name: str) -> Tensor:
        return layer_norm(x, w[name + ".weight"], w[name + ".bias"])

    def dense(x: Tensor, w: Weights, name: str) -> Tensor:  # transformers keeps GPT-2's matrices as [in, out]
        return linear(x, w[name + ".weight"], w[name + ".bias"])

    def embedded(w: Weights, tokens: Tensor) -> Tensor:
        runs, sequences, n = tokens.shape
        positions = w["transformer.wpe.weight"][:, None, :n]
        return (embed(tokens, w["transformer.wte.weight"]).view(runs, sequences, n, d) + positions).view(runs, -1, d)

    def block(w: Weights, at: str, x: Tensor, shape: Shape) -> Tensor:
        runs, b, t = shape
        qkv = dense(norm(x, w, at + "ln_1"), w, at + "attn.c_attn")
        q, k, v = qkv.view(runs * b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = causal_attention(q, k, v)
        x = x + dense(y.transpose(1, 2).reshape(runs, b * t, d), w, at + "attn.c_proj")
        y = gelu(dense(norm(x, w, at + "ln_2"), w, at + "mlp.c_fc"))
        return x + dense(y, w, at + "mlp.c_proj")

    def head(w: Weights, x: Tensor) -> Tensor:
        return torch.bmm(norm(x, w, "transformer.ln_f"), w["transformer.wte.weight"].mT)

    def losses(w: Weights, x: Tensor, targets: Tensor) -> Tensor:
        return head_losses(norm(x, w, "transformer.ln_f"), w["transformer.wte.weight"], targets)

    return Parts(embedded, block, head, losses, "transformer.h.")


def _llama(spec: ModelSpec, device: str) -> Parts:
    heads, d_head = spec.n_head, spec.d_head
    frequency = ROPE_THETA ** -(torch.arange(0, d_head, 2) / d_head)
    angle = torch.outer(torch.arange(spec.n_ctx).float(), frequency).repeat(1, 2).to(device)
    cos, sin = angle.cos(), angle.sin()

    def norm(x: Tensor, w: Weights, name: str) -> Tensor:
        return rms_norm(x, w[name + ".weight"])

    def dense(x: Tensor, w: Weights, name: str) -> Tensor:  # Llama's matrices are [out, in]
        return linear(x, w[name + ".weight"].mT)

    def rotate(x: Tensor, t: int) -> Tensor:  # Su et al. 2021 in the half-split order that transformers uses
        first, second = x.chunk(2, -1)
        return x * cos[:t].to(x.dtype) + torch.cat((-second, first), -1) * sin[:t].to(x.dtype)

    def block(w: Weights, at: str, x: Tensor, shape: Shape) -> Tensor:
        runs, b, t = shape
        y = norm(x, w, at + "input_layernorm")
        q, k, v = (
            dense(y, w, f"{at}self_attn.{n}_proj").view(runs * b, t, heads, d_head).transpose(1, 2) for n in "qkv"
        )
        y = causal_attention(rotate(q, t), rotate(k, t), v)
        x = x + dense(y.transpose(1, 2).reshape(runs, b * t, -1), w, at + "self_attn.o_proj")
        y = norm(x, w, at + "post_attention_layernorm")
        y = F.silu(dense(y, w, at + "mlp.gate_proj")) * dense(y, w, at + "mlp.up_proj")
        return x + dense(y, w, at + "mlp.down_proj")

    def head(w: Weights, x: Tensor) -> Tensor:
        return torch.bmm(norm(x, w, "model.norm"), w["lm_head.weight"].mT)

    def losses(w: Weights, x: Tensor, targets: Tensor) -> Tensor:
        return head_losses(norm(x, w, "model.norm"), w["lm_head.weight"], targets)

    return Parts(lambda w, tokens: embed(tokens, w["model.embed_tokens.weight"]), block, head, losses, "model.layers.")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [n] in nats of `logits` [n, vocab_size] at `targets` [n], in float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
