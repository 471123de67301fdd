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
    logits: Callable[[Tensor], Tensor], sequences: Tensor, model: ModelSpec, world: World = SINGLE
) -> tuple[float, float | None]:
    """Mean loss in nats per token over `sequences` [n, n_ctx + 1], and its standard error over them (None for n = 1),
    by `logits` (see sweep.learner). The ranks of `world` take a share each and all return the same.

    The standard error describes the choice of test text, which all runs share; it says nothing of seed noise.
    """
    rows = max(1, min(2048 // model.n_ctx, LOGITS // (model.n_ctx * model.vocab_size)))
    if sequences.device.type == "cuda":
        rows = max(rows, LOGITS * 8 // (model.n_ctx * model.vocab_size))
    share = world.share(len(sequences))
    means = torch.zeros(len(sequences), dtype=torch.float64, device=sequences.device)
    for start in range(share.start, share.start + -(-len(sequences) // world.size), rows):
        batch = sequences[start : min(start + rows, share.stop)]
        if not len(batch):  # the others have one left, and may need this rank to compute it
            logits(sequences[:1, :-1])
            continue
        losses = token_losses(logits(batch[:, :-1]), batch[:, 1:].reshape(-1))
        means[start : start + len(batch)] = losses.view(len(batch), -1).double().mean(1)
    world.sum_(means)
    error = float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(means.mean()), error
