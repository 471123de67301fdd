"""What learns in a run: weights, their gradients, the optimiser and the average, on one device or on many.

`Learner` is what the rest of a run sees of it. A model that fits a device is a `Replicated` one, whose ranks hold the
same state each; above `execution.shard_above` parameters the ranks of a `Sharded` one hold a part each. Both compute
the same losses, gradients and updates, and read each other's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sweep.accounting import count_params
from sweep.checkpoint import Checkpoint, Share
from sweep.device import autocast
from sweep.forward import Forward, Weights, forward_function, summed_loss
from sweep.model import initial_parameters
from sweep.optimizer import (
    FlatWeights,
    clip,
    make_optimizer,
    moments,
    optimizer_tensors,
    restore_moments,
    restore_optimizer,
)
from sweep.schema import InputError
from sweep.spec import PlannedRun
from sweep.world import SINGLE, World

if TYPE_CHECKING:
    from collections.abc import Iterator

Logits = Callable[[Tensor], Tensor]  # tokens [sequences, n] -> logits [sequences * n, vocab_size]
BatchLoss = Callable[[Weights, Tensor, Tensor, int], Tensor]


class State(NamedTuple):
    """What a checkpoint holds of a learner."""

    tensors: dict[str, Tensor]  # whole; rank 0's
    numbers: dict[str, Any]
    share: Share | None  # of the vectors that are spread over ranks


class Learner(Protocol):
    """Every rank calls each method, with its share of the sequences."""

    lone_retry: bool  # whether a rank that ran out of memory can repeat `accumulate` without the others' knowing

    def accumulate(self, tokens: Tensor, targets: Tensor, micro_batch: int) -> None:
        """Set the gradients to those of this rank's share [sequences, n_ctx] of a batch, `micro_batch` at a time."""

    def reduce(self) -> Tensor:
        """Add the ranks' gradients up; returns the loss of the whole batch, on the device."""

    def update(self, lr: float, averaging: float | None) -> Tensor:
        """One step at the rate `lr`, and the average moved by the share `averaging` towards the new weights; returns
        the norm of the gradients before clipping, on the device."""

    def evaluated(self) -> AbstractContextManager[Logits]:
        """The logits under the weights that evaluations speak of: the average where one is kept, else the last."""

    def gather(self) -> dict[str, Tensor]:
        """Those weights by name, on the CPU: rank 0's result, empty on the others."""

    def state(self) -> State:
        """Everything that further steps depend on."""

    def restore(self, saved: Checkpoint, numbers: dict[str, Any]) -> None:
        """Inverse of `state`, whatever learner on however many ranks left it."""


def make_learner(planned: PlannedRun, device: str, world: World = SINGLE) -> Learner:
    """The learner of a fresh run, on this rank's `device`. Raises InputError where `is_sharded` does."""
    if is_sharded(planned, world):
        from sweep.sharded import Sharded

        return Sharded(planned, device, world)
    return Replicated(planned, device, world)


def is_sharded(planned: PlannedRun, world: World) -> bool:
    """Whether the ranks hold a part of the model each. Raises InputError where they ought to and Adafactor is the
    optimiser: its factored moments need whole matrices."""
    name, limit = planned.spec.optimizer.name, planned.execution.shard_above
    sharded = world.size > 1 and count_params(planned.spec.model).total > limit
    if sharded and name != "adamw":
        raise InputError(
            f"optimizer {name} cannot be spread over devices; use optimizer=adamw, or raise execution.shard_above "
            f"(now {limit:g} parameters) for a model that fits one"
        )
    return sharded


class Replicated:
    """The whole state on every rank; the ranks add their gradients up once a step.

    This is data parallelism as DistributedDataParallel has it, with one bucket. That class is not used because it
    averages over ranks that all have a share, while here shares are uneven or empty and the sum is what is wanted.
    """

    lone_retry = True

    def __init__(self, planned: PlannedRun, device: str, world: World = SINGLE) -> None:
        """At step 0."""
        self.spec, self.world = planned.spec, world
        self.flat = FlatWeights(initial_parameters(self.spec.model, self.spec.seed), device)
        self.average = self.flat.values.clone() if self.spec.weight_average else None
        self.optimizer = make_optimizer(self.spec.optimizer, self.flat)
        self.forward = forward_function(self.spec.model, device)
        self.autocast = autocast(self.spec.precision, device)
        self.batch_loss = _batch_loss(self.forward)
        if planned.execution.compile:
            self.batch_loss = torch.compile(self.batch_loss, fullgraph=True, dynamic=False)

    def accumulate(self, tokens: Tensor, targets: Tensor, micro_batch: int) -> None:
        self.flat.totals.zero_()
        for start in range(0, len(tokens), micro_batch):
            part = slice(start, start + micro_batch)
            with self.autocast:
                loss = self.batch_loss(self.flat.weights, tokens[part], targets[part], self.spec.batch_tokens)
            loss.backward()
            self.flat.loss += loss.detach()

    def reduce(self) -> Tensor:
        self.world.sum_(self.flat.totals)
        return self.flat.loss.clone()

    def update(self, lr: float, averaging: float | None) -> Tensor:
        norm = clip(self.flat.gradients, self.spec.optimizer.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.average is not None and averaging is not None:
            self.average.lerp_(self.flat.values, averaging)
        return norm

    @contextmanager
    def evaluated(self) -> Iterator[Logits]:
        weights = self._evaluated_weights()

        def logits(tokens: Tensor) -> Tensor:
            with self.autocast:
                return self.forward(weights, tokens)

        yield logits

    def gather(self) -> dict[str, Tensor]:
        return {} if self.world.rank else {name: w.detach().cpu() for name, w in self._evaluated_weights().items()}

    def state(self) -> State:
        if self.world.rank:
            return State({}, {}, None)
        tensors: dict[str, Tensor] = {"weights": self.flat.values}
        if self.average is not None:
            tensors["average"] = self.average
        if isinstance(self.optimizer, torch.optim.AdamW):
            vectors, step = moments(self.optimizer)
            return State(tensors | vectors | step, {}, None)
        factored, numbers = optimizer_tensors(self.optimizer)
        return State(tensors | factored, numbers, None)

    def restore(self, saved: Checkpoint, numbers: dict[str, Any]) -> None:
        self.flat.values.copy_(saved.tensor("weights"))
        if self.average is not None:
            self.average.copy_(saved.tensor("average"))
        stored = {name: saved.tensor(name) for name in saved.names() if name.startswith("optimizer.")}
        if not isinstance(self.optimizer, torch.optim.AdamW):
            restore_optimizer(self.optimizer, stored | numbers)
        elif stored:
            restore_moments(self.optimizer, stored, stored["optimizer.step"])

    def _evaluated_weights(self) -> Weights:
        return self.flat.weights if self.average is None else self.flat.views(self.average)


def _batch_loss(forward: Forward) -> BatchLoss:
    """The share of a batch's mean loss that some of its sequences contribute: their sum over all its tokens."""

    def batch_loss(weights: Weights, tokens: Tensor, targets: Tensor, batch_tokens: int) -> Tensor:
        return summed_loss(forward(weights, tokens), targets.reshape(-1)) / batch_tokens

    return batch_loss
