"""Counts against closed forms, against what torch executes, and the tables of Kaplan and Hoffmann et al."""

from __future__ import annotations

import dataclasses

import pytest
from table_a9 import ARCHITECTURES

from sweep.accounting import count_flops, count_params, hoffmann_flops, hoffmann_params
from sweep.spec import ModelSpec

GPT2 = ModelSpec("gpt2", n_layer=3, d_model=24, n_head=2, d_head=12, d_ff=96, n_ctx=16, vocab_size=50)
LLAMA = ModelSpec("llama", n_layer=3, d_model=24, n_head=2, d_head=8, d_ff=64, n_ctx=16, vocab_size=50)


@pytest.mark.parametrize(
    ("shape", "printed"),
    [("2x128", 393_216), ("4x256", 3.1e6), ("8x512", 25.2e6), ("12x768", 85e6), ("24x1024", 302e6), ("36x1280", 708e6)],
)
def test_kaplan_sizes(shape: str, printed: float) -> None:
    n_layer, d_model = map(int, shape.split("x"))
    model = ModelSpec("gpt2", n_layer, d_model, d_model // 64, 64, 4 * d_model, 1024, 50257)
    assert count_params(model).params == 12 * n_layer * d_model**2
    assert count_params(model).params == pytest.approx(printed, rel=0.02)


def test_gpt2_small_is_the_published_model() -> None:
    model = ModelSpec("gpt2", 12, 768, 12, 64, 3072, 1024, 50257)
    assert count_params(model).total == 124_439_808  # OpenAI's checkpoint, tied head counted once
    assert count_params(model).head == 0


def test_llama_7b_is_the_published_model() -> None:
    model = ModelSpec("llama", 32, 4096, 32, 128, 11008, 2048, 32000)
    assert count_params(model).total == 6_738_415_616  # Touvron et al. 2023
    assert count_params(model).head == 32000 * 4096


@pytest.mark.parametrize("spec", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_flops_are_those_that_torch_executes(spec: ModelSpec) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from sweep.model import transformers_config

    # eager: the counter sees nothing of SDPA on a CPU
    model = AutoModelForCausalLM.from_config(transformers_config(spec), attn_implementation="eager")
    tokens = torch.zeros((2, spec.n_ctx), dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = model(tokens).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    flops = count_flops(spec)
    # a dense kernel also computes the masked half of the scores, which the convention leaves out
    expected = (flops.matrices + 2 * flops.context + flops.head) * tokens.numel()
    # rotary angles are a product of frequencies and positions, forward only
    rotary = 2 * spec.n_ctx * spec.d_head // 2 if spec.family == "llama" else 0
    assert forward.get_total_flops() - expected // 3 in (0, rotary)
    assert backward.get_total_flops() == 2 * expected // 3
    assert flops.total == flops.matrices + flops.context + flops.head


def test_context_flops_follow_kaplan_table_1() -> None:
    longer = dataclasses.replace(GPT2, n_ctx=2 * GPT2.n_ctx)
    assert count_flops(GPT2).context == 3 * 2 * 3 * 16 * 24
    assert count_flops(longer).context == 2 * count_flops(GPT2).context
    assert count_flops(GPT2).matrices == 6 * count_params(GPT2).params


def test_all_sizes_of_hoffmann_table_a9() -> None:
    assert len(ARCHITECTURES) == 50
    for millions, d_model, d_ff, d_head, n_head, n_layer in ARCHITECTURES:
        counted = hoffmann_params(d_model, d_ff, d_head, n_head, n_layer) / 1e6
        assert -0.009 < counted / millions - 1 < 0.005, f"{millions}M: counted {counted:.1f}M"


@pytest.mark.parametrize(
    ("millions", "without", "full"),
    [
        (74, 1.03, 1.58),
        (306, 1.10, 1.31),
        (552, 1.08, 1.23),
        (1143, 1.04, 1.14),
        (1593, 1.03, 1.11),
        (6796, 0.99, 1.03),
    ],
)
def test_hoffmann_table_a4(millions: int, without: float, full: float) -> None:
    """Printed ratios to 6 N D come out without embedding and logits; `full` is Appendix F as written."""
    _, d_model, d_ff, d_head, n_head, n_layer = next(a for a in ARCHITECTURES if a[0] == millions)
    shape = (d_model, d_ff, d_head, n_head, n_layer)
    six_nd = 6 * millions * 1e6 * 2048
    assert hoffmann_flops(*shape, embedding_and_logits=False) / six_nd == pytest.approx(without, abs=0.013)
    assert hoffmann_flops(*shape) / six_nd == pytest.approx(full, abs=0.006)
