"""Shapes from rungs, explicit sizes and targets; heads; feed-forward widths; micro-batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.accounting import count_params
from sweep.config import ModelConfig
from sweep.ladder import micro_batch, nearest_rung, resolve_model
from sweep.schema import InputError
from sweep.spec import ModelSpec


def resolve(**changes: Any) -> ModelSpec:
    return resolve_model(ModelConfig(**{"family": "gpt2", "n_ctx": 128, **changes}), 256)


def test_a_shape_can_be_said_in_three_ways() -> None:
    rung = resolve(shape="2x32", d_head=16)
    assert (rung.n_layer, rung.d_model, rung.n_head, rung.d_head, rung.d_ff, rung.vocab_size) == (
        2,
        32,
        2,
        16,
        128,
        256,
    )
    assert resolve(n_layer=2, d_model=32, n_head=2) == rung
    assert resolve(params=24_576, aspect=16, d_head=16) == rung


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"d_head": 16}, "none is set"),
        ({"shape": "2x32", "n_layer": 2, "d_model": 32, "d_head": 16}, "shape and model.n_layer/d_model are set"),
        ({"n_layer": 2, "d_head": 16}, "needed together"),
        ({"params": 1e6, "d_head": 16}, "positive model.aspect"),
        ({"shape": "32", "d_head": 16}, '"2x32"'),
        ({"shape": "2x0", "d_head": 16}, "d_model must be positive"),
        ({"shape": "2x32"}, "set model.n_head or model.d_head"),
        ({"shape": "2x40", "n_head": 3}, r"40 is not divisible by model.n_head 3.* 39 and 42"),
        ({"shape": "2x40", "d_head": 16}, r"40 is not divisible by model.d_head 16.* 32 and 48"),
        ({"shape": "2x32", "n_head": 3, "d_head": 16}, "d_model 32 is not n_head 3 x d_head 16"),
        ({"shape": "2x32", "n_head": 0}, "model.n_head must be positive"),
        ({"shape": "2x15", "n_head": 5, "family": "llama"}, "even d_head"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        resolve(**changes)


def test_llama_may_have_heads_that_do_not_add_up_to_d_model() -> None:
    model = resolve(family="llama", shape="36x2688", n_head=22, d_head=128)  # 3530M of Hoffmann et al., Table A9
    assert model.n_head * model.d_head != model.d_model


@pytest.mark.parametrize("d_model", [64, 512, 2688, 5120])
def test_swiglu_holds_as_much_as_four_d_model(d_model: int) -> None:
    llama = count_params(resolve(family="llama", n_layer=2, d_model=d_model, n_head=2)).mlp
    gpt2 = count_params(resolve(n_layer=2, d_model=d_model, n_head=2)).mlp
    assert llama == pytest.approx(gpt2, rel=0.03)
    assert resolve(family="llama", n_layer=2, d_model=d_model, n_head=2).d_ff % 8 == 0


@given(st.floats(1e5, 1e10), st.sampled_from([16, 39, 64, 128]))
def test_target_sizes_are_met(params: float, aspect: int) -> None:
    n_layer, d_model = nearest_rung(params, aspect, 16)
    assert d_model % 16 == 0
    assert 12 * n_layer * d_model**2 == pytest.approx(params, rel=0.2)
    if params > 1e7:  # at smaller sizes few rungs exist
        assert 12 * n_layer * d_model**2 == pytest.approx(params, rel=0.05)
        assert 0.5 < d_model / n_layer / aspect < 2


@given(st.integers(1, 3000), st.sampled_from([32, 128, 1024, 8192]))
def test_micro_batch_divides_and_stays_within_its_target(sequences: int, n_ctx: int) -> None:
    model = dataclasses.replace(resolve(shape="2x32", d_head=16), n_ctx=n_ctx)
    micro = micro_batch(model, sequences)
    assert sequences % micro == 0
    assert micro == 1 or micro * n_ctx <= 2048


def test_micro_batch_shrinks_with_the_memory_of_a_shape() -> None:
    small, large = resolve(shape="2x32", d_head=16), resolve(shape="48x1600", d_head=64)
    assert micro_batch(small, 64) == 16
    assert micro_batch(dataclasses.replace(large, vocab_size=50257), 64) < 8
