"""Evaluation steps shared by batch sizes, and the test loss against a direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sweep.batches import test_sequences
from sweep.evaluate import evaluate, evaluation_steps
from sweep.forward import forward_function
from sweep.model import initial_parameters
from sweep.spec import Execution


def test_token_counts_are_shared_by_batch_sizes(plan_tiny) -> None:
    execution = Execution(eval_points_per_decade=8, eval_tail=0)
    tokens = 64 * 32 * 1000
    grid = {10 ** (k / 8) for k in range(60)}
    for sequences in (1, 4, 64):
        spec = plan_tiny(sequences=sequences, steps=tokens // (32 * sequences)).spec
        assert spec.tokens == tokens
        steps = evaluation_steps(spec, execution)
        inside = [g for g in grid if 64 * 32 * 10 <= g <= tokens]  # where a step of the largest batch is short
        for target in inside:  # the first step that has seen the target's tokens, whatever the batch
            assert math.ceil(target / spec.batch_tokens) in steps
        assert len(steps) <= 8 * 2.5 + 2


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 4321])
def test_evaluation_ends_with_the_last_step_and_is_denser_there(plan_tiny, steps: int) -> None:
    spec = plan_tiny(steps=steps, schedule={"warmup_steps": 0}).spec
    found = evaluation_steps(spec, Execution(eval_points_per_decade=4, eval_tail=4))
    assert found == sorted(set(found))
    assert found[0] >= 1
    assert found[-1] == steps
    if steps >= 100:
        assert sum(s > 0.9 * steps for s in found) >= 5


def test_loss_and_error_over_the_whole_test_set(plan_tiny, tiny_corpus) -> None:
    model = plan_tiny(n_ctx=128).spec.model
    sequences = torch.from_numpy(test_sequences(tiny_corpus.test, 128, 128 * 37))  # the last batch is not full
    runs = [initial_parameters(model, seed) for seed in range(3)]
    weights = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    forward = forward_function(model)
    found = evaluate(lambda tokens: forward(weights, tokens), sequences, model, runs=3)
    with torch.no_grad():
        logits = forward(weights, sequences[:, :-1].expand(3, -1, -1))
    for run, (loss, error) in zip(logits, found, strict=True):
        each = F.cross_entropy(run, sequences[:, 1:].reshape(-1), reduction="none").view(37, 128).double().mean(1)
        assert loss == pytest.approx(float(each.mean()), rel=1e-6)
        assert error == pytest.approx(float(np.std(each.numpy(), ddof=1)) / math.sqrt(37), rel=1e-5)
