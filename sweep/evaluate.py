"""When a run is evaluated, and its loss on the fixed test set."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sweep.forward import token_losses
from sweep.spec import Execution, ModelSpec, RunSpec
from sweep.world import SINGLE, World

DECADES = 2.5  # the curve spans the last so many decades of the run's tokens
TAIL = 0.1  # share of the steps at the end that is evaluated more densely
TOKENS = 2048  # of a run in one batch on a CPU, whose caches it should not exceed
LOGITS = 2**24  # numbers in one batch of logits


def evaluation_steps(spec: RunSpec, execution: Execution) -> list[int]:
    """Numbers of updates after which the run is evaluated, ascending, the last one always among them.

    Token counts 10^(k / points per decade), the same for all batch sizes, each met by the first step that has seen as
    many tokens; and `eval_tail` further steps spread evenly over the last tenth.
    """
    per_decade = execution.eval_points_per_decade
    last = math.floor(per_decade * math.log10(spec.tokens))
    first = math.ceil(per_decade * (math.log10(spec.tokens) - DECADES))
    steps = {math.ceil(10 ** (k / per_decade) / spec.batch_tokens) for k in range(first, last + 1)}
    tail = execution.eval_tail
    steps |= {math.ceil(spec.steps * (1 - TAIL * i / (tail + 1))) for i in range(tail + 1)}
    return sorted(s for s in steps if 1 <= s <= spec.steps)


@torch.no_grad()
def evaluate(
    logits: Callable[[Tensor], Tensor], sequences: Tensor, model: ModelSpec, runs: int = 1, world: World = SINGLE
) -> list[tuple[float, float | None]]:
    """Of each of the `runs` that `logits` computes (see sweep.learner): its mean loss in nats per token over
    `sequences` [n, n_ctx + 1], and that one's standard error over them (None for n = 1). The ranks of `world` take a
    share each and all return the same.

    The standard error describes the choice of test text, which all runs share; it says nothing of seed noise.
    """
    logits_each = model.n_ctx * model.vocab_size
    at_once = max(1, min(TOKENS // model.n_ctx, LOGITS // logits_each))  # whatever `runs`, for equal last bits
    if sequences.device.type == "cuda":
        at_once = max(at_once, LOGITS * 8 // (logits_each * runs))
    share = world.share(len(sequences))
    means = torch.zeros(runs, len(sequences), dtype=torch.float64, device=sequences.device)
    for start in range(share.start, share.start + -(-len(sequences) // world.size), at_once):
        batch = sequences[start : min(start + at_once, share.stop)]
        if not len(batch):  # the others have one left, and may need this rank to compute it
            logits(sequences[:1, :-1].expand(runs, -1, -1))
            continue
        found = logits(batch[:, :-1].expand(runs, -1, -1)).flatten(0, 1)
        losses = token_losses(found, batch[:, 1:].expand(runs, -1, -1).reshape(-1))
        means[:, start : start + len(batch)] = losses.view(runs, len(batch), -1).double().mean(2)
    world.sum_(means)
    errors = (means.std(1) / math.sqrt(len(sequences))).tolist() if len(sequences) > 1 else [None] * runs
    return list(zip(means.mean(1).tolist(), errors, strict=True))
