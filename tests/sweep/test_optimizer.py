"""The flat optimiser against torch's own on separate parameters, clipping, decay groups, saving and restoring."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from sweep.optimizer import (
    FlatWeights,
    clip,
    make_optimizer,
    moments,
    optimizer_tensors,
    restore_moments,
    restore_optimizer,
)
from sweep.spec import OptimizerSpec


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 4), "b": (4,), "c": (3, 5), "d": (7,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def spec(name: Literal["adamw", "adafactor"] = "adamw", **changes: float) -> OptimizerSpec:
    values = {"lr": 0.02, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.3, "grad_clip": 1.0, **changes}
    return OptimizerSpec(name, **values)


def test_weights_and_gradients_share_the_flat_memory() -> None:
    flat = FlatWeights(parameters(), "cpu")
    assert list(flat.weights) == ["a", "c", "b", "d"]  # matrices first
    assert flat.decayed == 35
    (flat.weights["b"] * torch.arange(4.0)).sum().backward()
    assert flat.gradients[35:39].tolist() == [0, 1, 2, 3]
    flat.values.fill_(2.0)
    assert all((w == 2).all() for w in flat.weights.values())


def test_adamw_equals_torchs_on_separate_parameters_and_decays_matrices_only() -> None:
    flat = FlatWeights(parameters(), "cpu")
    ours = make_optimizer(spec(), flat)
    separate = {name: p.clone().requires_grad_() for name, p in parameters().items()}
    theirs = torch.optim.AdamW(
        [
            {"params": [separate["a"], separate["c"]], "weight_decay": 0.3},
            {"params": [separate["b"], separate["d"]], "weight_decay": 0.0},
        ],
        lr=0.02,
        betas=(0.9, 0.95),
    )
    for step in range(5):
        for name, gradient in parameters(100 + step).items():
            flat.weights[name].grad.copy_(gradient)
            separate[name].grad = gradient.clone()
        norm = clip(flat.gradients, 1.0)
        expected = torch.nn.utils.clip_grad_norm_(list(separate.values()), 1.0)
        torch.testing.assert_close(norm, expected)
        ours.step()
        theirs.step()
    for name, value in separate.items():
        torch.testing.assert_close(flat.weights[name], value)


def test_clip_leaves_small_gradients_and_zero_means_no_limit() -> None:
    small, large = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    assert float(clip(small, 1.0)) == pytest.approx(0.5)
    assert small.tolist() == pytest.approx([0.3, 0.4])
    assert float(clip(large, 0.0)) == pytest.approx(50.0)
    assert large.tolist() == [30.0, 40.0]
    clip(large, 1.0)
    assert float(large.norm()) == pytest.approx(1.0, rel=1e-5)


def test_adafactor_factors_matrices_and_moves_by_the_given_rate() -> None:
    flat = FlatWeights(parameters(), "cpu")
    optimizer = make_optimizer(spec("adafactor", beta1=0.0, weight_decay=0.0), flat)
    before = flat.values.clone()
    for name, gradient in parameters(7).items():
        flat.weights[name].grad.copy_(gradient)
    optimizer.step()
    moved = flat.views(flat.values - before)
    state = optimizer.state[flat.weights["a"]]
    assert state["exp_avg_sq_row"].shape == (5,)
    assert state["exp_avg_sq_col"].shape == (4,)
    for step in moved.values():  # first update: gradient over its own root mean square, clipped at 1
        assert float(step.pow(2).mean().sqrt()) == pytest.approx(0.02, rel=0.35)


def update(flat: FlatWeights, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for key, gradient in parameters(seed).items():
        flat.weights[key].grad.copy_(gradient)
    optimizer.step()


def test_restored_adafactor_goes_on_bit_identically() -> None:
    flat = FlatWeights(parameters(), "cpu")
    optimizer = make_optimizer(spec("adafactor"), flat)
    for seed in range(3):
        update(flat, optimizer, seed)
    tensors, numbers = copy.deepcopy(optimizer_tensors(optimizer))
    other = FlatWeights(flat.weights, "cpu")
    resumed = make_optimizer(spec("adafactor"), other)
    restore_optimizer(resumed, {**tensors, **numbers, "weights": flat.values})
    for seed in range(3, 6):
        update(flat, optimizer, seed)
        update(other, resumed, seed)
    assert torch.equal(flat.values, other.values)


def test_restored_adamw_goes_on_bit_identically() -> None:
    flat = FlatWeights(parameters(), "cpu")
    optimizer = make_optimizer(spec(), flat)
    assert moments(optimizer) == ({}, {})
    for seed in range(3):
        update(flat, optimizer, seed)
    vectors, whole = copy.deepcopy(moments(optimizer))
    assert {name: len(v) for name, v in vectors.items()} == {"optimizer.exp_avg": 46, "optimizer.exp_avg_sq": 46}
    other = FlatWeights(flat.weights, "cpu")
    resumed = make_optimizer(spec(), other)
    restore_moments(resumed, vectors, whole["optimizer.step"])
    for seed in range(3, 6):
        update(flat, optimizer, seed)
        update(other, resumed, seed)
    assert torch.equal(flat.values, other.values)
