"""Parameters and FLOPs of a shape, by component. Nothing else in the project counts them.

N is `Params.params`, the weight matrices of attention and feed-forward alone (Kaplan et al. 2020, Eq. 2.1); training
compute is C = 6 N D, with the attention over the context and the logits kept apart, so that other conventions can be
formed from the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sweep.spec import ModelSpec


@dataclass(frozen=True)
class Params:
    """Numbers of parameters by component; they add up to the model's own count."""

    embedding: int  # token embedding
    position: int  # learned position embedding; 0 for rotary
    attention: int  # query, key, value and output matrices
    mlp: int  # two matrices a layer for gpt2, three for SwiGLU
    norm_bias: int  # norms and biases
    head: int  # logits; 0 where tied to the embedding

    @property
    def params(self) -> int:
        """N: matrices of attention and feed-forward."""
        return self.attention + self.mlp

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.position + self.attention + self.mlp + self.norm_bias + self.head


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of a training step, forward and backward (three times forward)."""

    matrices: int  # 6 N
    context: int  # attention over the context, causal half only (Kaplan et al. 2020, Table 1, "mask")
    head: int  # logits

    @property
    def total(self) -> int:
        """All components: what the hardware has to do."""
        return self.matrices + self.context + self.head


@lru_cache(maxsize=4096)
def count_params(model: ModelSpec) -> Params:
    """Parameters of `model` as transformers builds it (GPT-2: biases, LayerNorm, tied head; Llama: no biases,
    RMSNorm, untied head)."""
    d, d_attn, layers = model.d_model, model.n_head * model.d_head, model.n_layer
    attention = layers * 4 * d * d_attn
    embedding = model.vocab_size * d
    if model.family == "gpt2":
        biases = 3 * d_attn + d + model.d_ff + d
        norms = 2 * 2 * d
        return Params(
            embedding=embedding,
            position=model.n_ctx * d,
            attention=attention,
            mlp=layers * 2 * d * model.d_ff,
            norm_bias=layers * (biases + norms) + 2 * d,
            head=0,
        )
    return Params(
        embedding=embedding,
        position=0,
        attention=attention,
        mlp=layers * 3 * d * model.d_ff,
        norm_bias=layers * 2 * d + d,
        head=embedding,
    )


@lru_cache(maxsize=4096)
def count_flops(model: ModelSpec) -> Flops:
    """Training FLOPs per token of `model` (Kaplan et al. 2020, Table 1, times three).

    The context term counts the causal half, 2 n_layer n_ctx d_attn forward; a kernel that computes the masked half
    too spends twice that. A tied head has no parameters of its own but the same FLOPs.
    """
    return Flops(
        matrices=6 * count_params(model).params,
        context=3 * 2 * model.n_layer * model.n_ctx * model.n_head * model.d_head,
        head=6 * model.d_model * model.vocab_size,
    )


def hoffmann_params(d_model: int, d_ff: int, d_head: int, n_head: int, n_layer: int, vocab: int = 32_000) -> int:
    """Parameters as printed in Table A9 of Hoffmann et al. 2022, within one per cent.

    Five attention matrices a layer, not four: the printed sizes come out only so; the fifth is thought to be the
    projection of the relative positions. Embedding included.
    """
    return vocab * d_model + n_layer * (5 * d_model * n_head * d_head + 2 * d_model * d_ff)


def hoffmann_flops(
    d_model: int,
    d_ff: int,
    d_head: int,
    n_head: int,
    n_layer: int,
    *,
    vocab: int = 32_000,
    seq_len: int = 2048,
    embedding_and_logits: bool = True,
) -> int:
    """Training FLOPs per sequence by Appendix F of Hoffmann et al. 2022 (forward, times three).

    With `embedding_and_logits=False` both terms that scale with the vocabulary are dropped; only so do the ratios to
    6 N D of the paper's Table A4 come out.
    """
    width = d_head * n_head
    attention = (
        2 * 3 * seq_len * d_model * width  # queries, keys, values
        + 2 * seq_len * seq_len * width  # scores
        + 3 * n_head * seq_len * seq_len  # softmax
        + 2 * seq_len * seq_len * width  # sum over values
        + 2 * seq_len * width * d_model  # output
    )
    dense = 2 * seq_len * (2 * d_model * d_ff)
    forward = n_layer * (attention + dense)
    if embedding_and_logits:
        forward += 2 * 2 * seq_len * vocab * d_model
    return 3 * forward
