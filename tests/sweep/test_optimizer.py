"""The optimisers on rows against torch's own on separate parameters, clipping, decay groups, saving and restoring."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from sweep.optimizer import AdamW, FlatWeights, Optimizer, clip, make_optimizer
from sweep.spec import OptimizerSpec


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 4), "b": (4,), "c": (3, 5), "d": (7,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def spec(name: Literal["adamw", "adafactor"] = "adamw", **changes: float) -> OptimizerSpec:
    values = {"lr": 0.02, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.3, "grad_clip": 1.0, **changes}
    return OptimizerSpec(name, **values)


def give(flat: FlatWeights, row: int, seed: int) -> None:
    """Set the gradients of one run."""
    for name, gradient in parameters(seed).items():
        flat.slopes[name][row] = gradient


def loss_of_b(flat: FlatWeights, row: int) -> torch.Tensor:
    """A loss that moves one run's b, by 0 ... 3."""
    others = sum((w * 0).sum() for w in flat.weights.values())
    return others + (flat.weights["b"][row] * torch.arange(4.0)).sum()


def test_weights_and_gradients_share_the_memory_of_the_rows() -> None:
    flat = FlatWeights([parameters(), parameters(1)], "cpu")
    assert list(flat.weights) == ["a", "c", "b", "d"]  # matrices first
    assert flat.decayed == 35
    flat.backward(loss_of_b(flat, row=1))
    assert flat.gradients[1, 35:39].tolist() == [0, 1, 2, 3]
    assert not flat.gradients[0].any()
    flat.values[1].fill_(2.0)
    assert all((w[1] == 2).all() for w in flat.weights.values())
    assert torch.equal(flat.weights["d"][0], parameters()["d"])


def test_kept_rows_have_their_values_and_gradients_and_still_learn() -> None:
    flat = FlatWeights([parameters(seed) for seed in range(3)], "cpu")
    for row in range(3):
        give(flat, row, 10 + row)
    flat.keep([2, 0])
    for row, seed in enumerate((2, 0)):
        for name, value in parameters(seed).items():
            assert torch.equal(flat.weights[name][row], value)
            assert torch.equal(flat.slopes[name][row], parameters(10 + seed)[name])
    flat.backward(loss_of_b(flat, row=1))
    assert torch.equal(flat.gradients[1, 35:39], parameters(10)["b"] + torch.arange(4.0))


@pytest.mark.parametrize("together", [False, True])
def test_adamw_equals_torchs_on_separate_parameters_and_decays_matrices_only(together: bool) -> None:
    """Three runs with settings of their own, updated at different times: by the fused kernel, and as rows together."""
    settings = [spec(), spec(lr=0.1, beta2=0.99, weight_decay=0.0), spec(lr=0.003, beta1=0.8, eps=1e-3)]
    flat = FlatWeights([parameters(seed) for seed in range(3)], "cpu")
    ours = AdamW(settings, flat)
    separate = [{name: p.clone().requires_grad_() for name, p in parameters(seed).items()} for seed in range(3)]
    theirs = [
        torch.optim.AdamW(
            [
                {"params": [own["a"], own["c"]], "weight_decay": each.weight_decay},
                {"params": [own["b"], own["d"]], "weight_decay": 0.0},
            ],
            lr=each.lr,
            betas=(each.beta1, each.beta2),
            eps=each.eps,
        )
        for own, each in zip(separate, settings, strict=True)
    ]
    for step in range(6):
        rows = slice(0, 3) if step % 2 else slice(0, 2)
        due = range(3)[rows]
        for row in due:
            give(flat, row, 100 + 10 * step + row)
            for name, gradient in parameters(100 + 10 * step + row).items():
                separate[row][name].grad = gradient.clone()
        norms = clip(flat.gradients[rows], [1.0] * len(due))
        expected = [torch.nn.utils.clip_grad_norm_(list(separate[row].values()), 1.0) for row in due]
        torch.testing.assert_close(norms, torch.stack(expected))
        if together:  # what a GPU does
            for row in due:
                ours.steps[row] += 1
            with torch.no_grad():
                ours._several(rows, [settings[row].lr for row in due])
        else:
            ours.step(rows, [settings[row].lr for row in due])
        for row in due:
            theirs[row].step()
    for row, own in enumerate(separate):
        for name, value in own.items():
            torch.testing.assert_close(flat.weights[name][row], value)


def test_clip_leaves_small_gradients_and_zero_means_no_limit() -> None:
    rows = torch.tensor([[0.3, 0.4], [30.0, 40.0], [3.0, 4.0], [float("nan"), 1.0]])
    norms = clip(rows, [1.0, 0.0, 1.0, 1.0])
    assert norms[:3].tolist() == pytest.approx([0.5, 50.0, 5.0])
    assert rows[0].tolist() == pytest.approx([0.3, 0.4])
    assert rows[1].tolist() == [30.0, 40.0]
    assert float(rows[2].norm()) == pytest.approx(1.0, rel=1e-5)
    assert norms[3].isnan()


def test_adafactor_factors_matrices_and_moves_by_the_given_rate() -> None:
    flat = FlatWeights([parameters()], "cpu")
    optimizer = make_optimizer([spec("adafactor", beta1=0.0, weight_decay=0.0)], flat)
    before = flat.values.clone()
    give(flat, 0, 7)
    optimizer.step(slice(0, 1), [0.02])
    state, _ = optimizer.state(0)
    assert state["optimizer.0.exp_avg_sq_row"].shape == (5,)
    assert state["optimizer.0.exp_avg_sq_col"].shape == (4,)
    for step in flat.views(flat.values - before).values():  # first: gradient over its root mean square, clipped at 1
        assert float(step.pow(2).mean().sqrt()) == pytest.approx(0.02, rel=0.35)


def update(flat: FlatWeights, optimizer: Optimizer, row: int, seed: int) -> None:
    give(flat, row, seed)
    optimizer.step(slice(row, row + 1), [0.02])


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_restored_optimizer_goes_on_bit_identically(name: Literal["adamw", "adafactor"]) -> None:
    """The second of two runs where there can be two; it goes on alone."""
    count = 2 if name == "adamw" else 1
    flat = FlatWeights([parameters()] * count, "cpu")
    optimizer = make_optimizer([spec(name)] * count, flat)
    if name == "adamw":
        assert optimizer.state(1) == ({}, {})
    for seed in range(3):
        update(flat, optimizer, count - 1, seed)
    tensors, numbers = copy.deepcopy(optimizer.state(count - 1))
    other = FlatWeights([{key: w[count - 1] for key, w in flat.weights.items()}], "cpu")
    resumed = make_optimizer([spec(name)], other)
    resumed.restore(0, tensors | numbers)
    for seed in range(3, 6):
        update(flat, optimizer, count - 1, seed)
        update(other, resumed, 0, seed)
    assert torch.equal(flat.values[-1], other.values[0])
