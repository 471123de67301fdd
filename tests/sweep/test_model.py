"""Models against transformers: counts, ties, initial values, logits, gradients, the Hugging Face format."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from sweep.accounting import count_params
from sweep.forward import forward_function, loss_function, token_losses
from sweep.model import (
    component_params,
    initial_parameters,
    initialize,
    parameter_shapes,
    save_model,
    transformers_config,
    transformers_model,
)
from sweep.schema import InputError
from sweep.spec import ModelSpec

GPT2 = ModelSpec("gpt2", n_layer=2, d_model=32, n_head=4, d_head=8, d_ff=96, n_ctx=24, vocab_size=61)
LLAMA = ModelSpec("llama", n_layer=2, d_model=32, n_head=4, d_head=6, d_ff=80, n_ctx=24, vocab_size=61)
ODD = ModelSpec("llama", n_layer=1, d_model=32, n_head=3, d_head=10, d_ff=80, n_ctx=24, vocab_size=61)
both = pytest.mark.parametrize("spec", [GPT2, LLAMA], ids=["gpt2", "llama"])
every = pytest.mark.parametrize("spec", [GPT2, LLAMA, ODD], ids=["gpt2", "llama", "heads that do not divide the width"])


def theirs(spec: ModelSpec) -> PreTrainedModel:
    """The model as transformers makes it, with transformers' own initial values."""
    return AutoModelForCausalLM.from_config(transformers_config(spec), attn_implementation="sdpa")


@every
def test_names_shapes_and_order_are_those_of_transformers(spec: ModelSpec) -> None:
    expected = [(name, tuple(parameter.shape)) for name, parameter in theirs(spec).named_parameters()]
    assert list(parameter_shapes(spec).items()) == expected


@every
def test_initial_values_are_those_drawn_into_the_parameters_of_transformers(spec: ModelSpec) -> None:
    drawn = dict(theirs(spec).named_parameters())
    initialize(drawn, spec, seed=3)
    ours = initial_parameters(spec, seed=3)
    assert list(ours) == list(drawn)
    for name, value in ours.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, drawn[name]), name


@every
def test_counts_are_the_models_own(spec: ModelSpec) -> None:
    params = count_params(spec)
    assert params.total == theirs(spec).num_parameters()
    for component, count in component_params(initial_parameters(spec, seed=0)).items():
        assert count == getattr(params, component)


def test_head_is_tied_for_gpt2_only() -> None:
    gpt2, llama = (transformers_model(spec, initial_parameters(spec, 0)) for spec in (GPT2, LLAMA))
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    assert llama.lm_head.weight is not llama.model.embed_tokens.weight
    assert not torch.equal(llama.lm_head.weight, llama.model.embed_tokens.weight)


def test_training_on_one_device_imports_neither_transformers_nor_what_spreads_tensors() -> None:
    code = """
import sys
import sweep.train
from sweep.model import initial_parameters
from sweep.spec import ModelSpec
initial_parameters(ModelSpec("llama", 1, 8, 1, 8, 24, 16, 61), 0)
sys.exit(" ".join({"transformers", "torch.distributed.tensor"} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@both
def test_initial_values_depend_on_the_seed_only(spec: ModelSpec) -> None:
    first, again, other = (initial_parameters(spec, seed) for seed in (3, 3, 4))
    torch.rand(7)  # the global generator must not matter
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert value.ndim == 1 or not torch.equal(value, other[name])


@every
def test_stacked_forward_has_the_logits_and_gradients_of_transformers(spec: ModelSpec) -> None:
    """Three models with weights and tokens of their own, as one computation."""
    generator = torch.Generator().manual_seed(5)
    models = [transformers_model(spec, initial_parameters(spec, seed)) for seed in range(3)]
    with torch.no_grad():  # biases and norms that matter, weights far from their initial scale
        for model in models:
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tokens = torch.randint(0, spec.vocab_size, (3, 2, spec.n_ctx + 1), generator=generator)
    inputs, targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
    weights = stacked(*(dict(model.named_parameters()) for model in models))
    logits = forward_function(spec)(weights, inputs)
    losses = loss_function(spec)(weights, inputs, targets)
    (losses * torch.tensor([1.0, 0.5, 2.0])).sum().backward()
    for row, (model, share) in enumerate(zip(models, (1.0, 0.5, 2.0), strict=True)):
        theirs = model(input_ids=inputs[row]).logits.reshape(-1, spec.vocab_size)
        torch.testing.assert_close(logits[row], theirs, rtol=1e-4, atol=1e-5)
        loss = F.cross_entropy(theirs, targets[row].reshape(-1), reduction="sum")
        torch.testing.assert_close(losses[row], loss, rtol=1e-5, atol=0)
        (share * loss).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(weights[name].grad[row], parameter.grad, rtol=1e-3, atol=2e-4)


def stacked(*runs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of several models with a leading run axis, to be differentiated."""
    return {name: torch.stack([run[name].detach() for run in runs]).requires_grad_() for name in runs[0]}


@both
def test_no_position_sees_later_tokens(spec: ModelSpec) -> None:
    weights = stacked(initial_parameters(spec, seed=1))
    tokens = torch.randint(0, spec.vocab_size, (1, 1, spec.n_ctx), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[..., 10:] = (changed[..., 10:] + 1) % spec.vocab_size
    forward = forward_function(spec)
    before, after = forward(weights, tokens)[0], forward(weights, changed)[0]
    torch.testing.assert_close(before[:10], after[:10])
    assert not torch.allclose(before[10:], after[10:])


@both
def test_first_loss_is_near_that_of_a_uniform_guess(spec: ModelSpec) -> None:
    weights = stacked(initial_parameters(spec, seed=0))
    tokens = torch.randint(0, spec.vocab_size, (32, spec.n_ctx + 1), generator=torch.Generator().manual_seed(2))
    loss = token_losses(forward_function(spec)(weights, tokens[None, :, :-1])[0], tokens[:, 1:].reshape(-1)).mean()
    assert abs(loss.item() - math.log(spec.vocab_size)) < 0.8


@both
def test_saved_model_loads_with_transformers_and_has_the_same_logits(spec: ModelSpec, tmp_path) -> None:
    weights = {name: p + 0.05 for name, p in initial_parameters(spec, seed=1).items()}
    save_model(spec, weights, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, spec.vocab_size, (2, spec.n_ctx), generator=torch.Generator().manual_seed(2))
    expected = forward_function(spec)(stacked(weights), tokens[None])[0]
    torch.testing.assert_close(
        loaded(input_ids=tokens).logits.reshape(-1, spec.vocab_size), expected, rtol=1e-4, atol=1e-5
    )


def test_shape_that_transformers_cannot_load_is_not_saved(tmp_path) -> None:
    with pytest.raises(InputError, match="multiple of n_head"):
        save_model(ODD, initial_parameters(ODD, 0), tmp_path)
