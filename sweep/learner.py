"""What learns in a stack of runs: weights, their gradients, the optimiser and the average, on one device or on many.

`Learner` is what the rest of a stack sees of it. Models that fit a device are `Stacked`, one or several, with a leading
run axis; where ranks share a run each of them holds the same state. Above `execution.shard_above` parameters the ranks
of a `Sharded` one hold a part each. All compute the same losses, gradients and updates, and read each other's
checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sweep.accounting import count_params
from sweep.checkpoint import Checkpoint, Share
from sweep.device import autocast
from sweep.forward import Weights, forward_function, loss_function
from sweep.graphs import Graphed, launch_bound
from sweep.model import initial_parameters
from sweep.optimizer import FlatWeights, clip, make_optimizer, to_device
from sweep.schema import InputError
from sweep.spec import PlannedRun, RunSpec
from sweep.world import SINGLE, World

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

Losses = Callable[[Weights, Tensor, Tensor], Tensor]  # (weights, tokens, targets) -> sums [R] in nats
Logits = Callable[[Tensor], Tensor]  # tokens [R, sequences, n] -> logits [R, sequences * n, vocab_size]


class State(NamedTuple):
    """What a checkpoint holds of a run's learner."""

    tensors: dict[str, Tensor]  # whole; rank 0's
    numbers: dict[str, Any]
    share: Share | None  # of the vectors that are spread over ranks


class Learner(Protocol):
    """Of runs in rows. Every rank calls each method, with its share of the sequences."""

    lone_retry: bool  # whether a rank that ran out of memory can repeat a batch without the others' knowing

    def accumulate(self, tokens: Tensor, targets: Tensor) -> None:
        """Add the gradients of these sequences [R, m, n_ctx] of each run's batch; m may be 0."""

    def discard(self) -> None:
        """Forget the gradients so far."""

    def update(self, rows: slice, lr: Sequence[float], averaging: Sequence[float]) -> tuple[Tensor, Tensor]:
        """End the batches of the runs in `rows`: one step each at their rates `lr`, and their averages moved by the
        shares `averaging` towards the new weights (1: the average is the last weights). Returns their batches' losses
        and the norms of the gradients before clipping, [k] on the device."""

    def evaluated(self, rows: Sequence[int]) -> AbstractContextManager[Logits]:
        """The logits of these runs under the weights that evaluations speak of: the average where one is kept, else
        the last."""

    def gather(self, row: int) -> dict[str, Tensor]:
        """Those weights of one run by name, on the CPU: rank 0's result, empty on the others."""

    def state(self, row: int) -> State:
        """Everything that further steps of one run depend on."""

    def restore(self, row: int, saved: Checkpoint, numbers: dict[str, Any]) -> None:
        """Inverse of `state`, whatever learner on however many ranks left it. Gradients of a batch that was not ended
        are left out where the ranks share it otherwise."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these runs only, in this order."""


def make_learner(
    runs: Sequence[PlannedRun], device: str, world: World = SINGLE, note: Callable[[str], None] = log.info
) -> Learner:
    """The learner of fresh runs of one shape, a row each, on this rank's `device`. `note` is told what people should
    know. Raises InputError where `is_sharded` does."""
    if is_sharded(runs[0], world):
        from sweep.sharded import Sharded

        [planned] = runs
        return Sharded(planned, device, world)
    return Stacked(runs, device, world, note)


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


class Stacked:
    """Models of one shape as one computation with a leading run axis, whole on every rank. The ranks of a run add their
    gradients up once a step.

    That is data parallelism as DistributedDataParallel has it, with one bucket. That class is not used because it
    averages over ranks that all have a share, while here shares are uneven or empty and the sum is what is wanted.
    """

    lone_retry = True

    def __init__(
        self, runs: Sequence[PlannedRun], device: str, world: World = SINGLE, note: Callable[[str], None] = log.info
    ) -> None:
        """At step 0."""
        self.specs, self.world = [planned.spec for planned in runs], world
        first = self.specs[0]
        drawn = {seed: initial_parameters(first.model, seed) for seed in {spec.seed for spec in self.specs}}
        self.flat = FlatWeights([drawn[spec.seed] for spec in self.specs], device)
        self.average = self.flat.values.clone() if any(spec.weight_average for spec in self.specs) else None
        self.optimizer = make_optimizer([spec.optimizer for spec in self.specs], self.flat)
        self.forward = forward_function(first.model, device)
        self.autocast = autocast(first.precision, device)
        losses = loss_function(first.model, device)
        self.compiled = runs[0].execution.compile
        if self.compiled:
            losses = torch.compile(losses, fullgraph=True, dynamic=False)
        self.passes = _Passes(self.flat, losses, self.autocast, self.specs)
        self.graphed = Graphed(self.passes, device, note)

    def accumulate(self, tokens: Tensor, targets: Tensor) -> None:
        if not tokens.shape[1]:
            return
        bound = tokens.is_cuda and launch_bound(self.specs[0].model, tokens.numel())
        (self.graphed if bound else self.passes)(tokens, targets)

    def discard(self) -> None:
        self.flat.gradients.zero_()
        self.passes.loss.zero_()

    @torch.no_grad()
    def update(self, rows: slice, lr: Sequence[float], averaging: Sequence[float]) -> tuple[Tensor, Tensor]:
        gradients = self.world.sum_(self.flat.gradients[rows])
        losses = self.world.sum_(self.passes.loss[rows].clone())
        norms = clip(gradients, [spec.optimizer.grad_clip for spec in self.specs[rows]])
        self.optimizer.step(rows, lr)
        if self.average is not None:
            moved, values = self.average[rows], self.flat.values[rows]
            moved.lerp_(values, to_device(averaging, values.device)[:, None])
        gradients.zero_()
        self.passes.loss[rows] = 0
        return losses, norms

    @contextmanager
    def evaluated(self, rows: Sequence[int]) -> Iterator[Logits]:
        weights = self._evaluated_weights(rows)

        def logits(tokens: Tensor) -> Tensor:
            with self.autocast:
                return self.forward(weights, tokens)

        yield logits

    def _evaluated_weights(self, rows: Sequence[int]) -> dict[str, Tensor]:
        values = self.flat.values if self.average is None else self.average
        return self.flat.views(values if list(rows) == list(range(len(values))) else values[list(rows)])

    def gather(self, row: int) -> dict[str, Tensor]:
        if self.world.rank:
            return {}
        return {name: weight[0].cpu() for name, weight in self._evaluated_weights([row]).items()}

    def state(self, row: int) -> State:
        if self.world.rank:
            return State({}, {}, None)
        tensors = {"weights": self.flat.values[row]}
        if self.average is not None and self.specs[row].weight_average:
            tensors["average"] = self.average[row]
        found, numbers = self.optimizer.state(row)
        if self.world.size == 1:
            tensors |= {"gradients": self.flat.gradients[row], "loss": self.passes.loss[row]}
        return State(tensors | found, numbers, None)

    @torch.no_grad()
    def restore(self, row: int, saved: Checkpoint, numbers: dict[str, Any]) -> None:
        self.flat.values[row] = saved.tensor("weights")
        if self.average is not None:
            self.average[row] = saved.tensor("average" if self.specs[row].weight_average else "weights")
        stored = {name: saved.tensor(name) for name in saved.names() if name.startswith("optimizer.")}
        if stored or numbers:
            self.optimizer.restore(row, stored | numbers)
        if self.world.size == 1 and "gradients" in saved:
            self.flat.gradients[row] = saved.tensor("gradients")
            self.passes.loss[row] = saved.tensor("loss")

    def keep(self, rows: Sequence[int]) -> None:
        kept = list(rows)
        self.specs = [self.specs[row] for row in kept]
        self.flat.keep(kept)
        self.optimizer.keep(kept)
        if self.average is not None:
            self.average = self.average[kept]
        loss = self.passes.loss[kept]
        self.passes.fix(self.specs)
        self.passes.loss.copy_(loss)
        self.graphed.forget()  # all of these have moved
        if self.compiled:
            torch.compiler.reset()  # another number of runs is no recompilation to complain about


class _Passes:
    """Forward and backward passes that add to the gradients of `flat` and to `loss`.

    An object of its own, so that a learner and its recorded passes are no cycle: both, and the memory that they hold on
    the device, go as soon as the learner does.
    """

    def __init__(
        self, flat: FlatWeights, losses: Losses, autocast: AbstractContextManager[object], specs: Sequence[RunSpec]
    ) -> None:
        self.flat, self.losses, self.autocast = flat, losses, autocast
        self.fix(specs)

    def fix(self, specs: Sequence[RunSpec]) -> None:
        """Begin anew with the runs that there are."""
        device = self.flat.values.device
        self.loss = torch.zeros(len(specs), device=device)  # of the batches so far
        self.scale = torch.tensor([1 / spec.batch_tokens for spec in specs], device=device)

    def __call__(self, tokens: Tensor, targets: Tensor) -> None:
        with self.autocast:
            losses = self.losses(self.flat.weights, tokens, targets) * self.scale
        self.flat.backward(losses.sum())
        self.loss += losses.detach()
