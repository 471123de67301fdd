"""Runs of one shape trained as one computation: what learns, the data, and the position that they all stand at.

A pass takes some sequences of every run; each run adds its passes up until it has seen its batch, and is then updated
by itself, so that runs of any batch sizes go side by side. Everything here belongs to one stack and nothing is global,
so that several stacks can live in one process. On several ranks, where a stack is one run, each rank trains it on its
share of every batch, and knows the same history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sweep.batches import test_sequences
from sweep.checkpoint import Checkpoint, Share
from sweep.corpus import Corpus
from sweep.evaluate import evaluate
from sweep.feed import feed_for
from sweep.learner import make_learner
from sweep.run import Run
from sweep.spec import PlannedRun
from sweep.world import SINGLE, World

Ended = list[tuple[list[Run], Tensor, Tensor]]  # runs that were updated, with losses and norms on the device


class Stack:
    """Live runs in rows, the smallest batches first, so that the runs due for an update are neighbours."""

    def __init__(self, planned: Sequence[PlannedRun], corpus: Corpus, device: str, world: World = SINGLE) -> None:
        """Runs at step 0, on this rank's `device`."""
        self.device, self.world = device, world
        ordered = sorted(planned, key=lambda run: run.spec.batch_tokens)
        self.runs = [Run(run) for run in ordered]
        self.notes: list[str] = []  # what this rank wants told to people
        self.learner = make_learner(ordered, device, world, self.notes.append)
        self.model, self.execution = ordered[0].spec.model, ordered[0].execution
        self.feed = feed_for(corpus, self.model.n_ctx, device)
        test = test_sequences(corpus.test, self.model.n_ctx, ordered[0].spec.data.test_tokens)
        self.test = torch.from_numpy(test).to(device)
        # One shape, compiled once, on all ranks.
        sizes = [part for run in self.runs for part in (self._part(run), run.spec.batch_sequences // world.size)]
        self._common = math.gcd(*sizes) if self.execution.compile else None

    @property
    def seen(self) -> int:
        """Sequences that each run has seen."""
        return self.runs[0].seen

    def micro_batch(self, run: Run) -> int:
        """Sequences of `run` that this rank computes at once at most."""
        part = self._part(run)
        limit = min(run.planned.execution.micro_batch or part, run.micro_limit or part, part)
        return limit if self._common is None else _largest_divisor(self._common, limit)

    def _part(self, run: Run) -> int:
        """The most sequences of a batch that a rank has."""
        return -(-run.spec.batch_sequences // self.world.size)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Train until each run has seen `until` sequences, where the batch of one of them ends, or, sooner, until
        `stop()` or until a batch has to begin anew for want of memory. Several ranks: whole batches only. Reads the
        device once, at the end."""
        started = time.perf_counter()
        block, taken = self._read(until - self.seen), 0
        share = self.world.share(self.runs[0].spec.batch_sequences)  # of one run's batch, where ranks share it
        ended: Ended = []
        while self.seen < until and not stop():
            run = self.runs[0]
            size = min(min(self.micro_batch(run), self._part(run) - run.into) for run in self.runs)
            width = size if self.world.size == 1 else max(0, min(size, share.stop - share.start - run.into))
            if not self._accumulate(block[:, taken : taken + width], size):
                break
            taken += width
            ended += self._update(size)
        self._keep_history(ended)
        for run in self.runs:
            run.train_s += (time.perf_counter() - started) / len(self.runs)

    def _read(self, count: int) -> Tensor:
        """This rank's part of the next `count` sequences of each run, [R, part, n_ctx + 1] on the device."""
        block = self.feed.block([(run.spec.seed, run.seen) for run in self.runs], count)
        if self.world.size == 1:
            return block
        size = self.runs[0].spec.batch_sequences
        return block.unflatten(1, (count // size, size))[:, :, self.world.share(size)].flatten(1, 2)

    def _accumulate(self, part: Tensor, size: int) -> bool:
        """One pass, over the sequences `part` [R, width, n_ctx + 1]. Where memory runs out, and this rank can make up
        for it alone, the batch begins anew with a smaller micro-batch, and the result is False."""
        # copies have the same strides in every pass, which compiled code wants
        tokens, targets = (x.clone(memory_format=torch.contiguous_format) for x in (part[..., :-1], part[..., 1:]))
        try:
            self.learner.accumulate(tokens, targets)
            return True
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or not self.learner.lone_retry or len(self.runs) > 1 or size == 1:
                raise
        self.learner.discard()  # here, where nothing holds what the failed pass had computed
        self.runs[0].into = 0
        self.shrink()
        return False

    def shrink(self) -> bool:
        """Halve the micro-batch of a single run, to the next divisor of the batch; False where it is one sequence."""
        [run] = self.runs
        before = self.micro_batch(run)
        if before == 1:
            return False
        self.limit(run, before // 2)
        after = self.micro_batch(run)
        self.notes.append(f"out of memory with a micro-batch of {before} sequences; going on with {after}")
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self.execution.compile:
            torch.compiler.reset()  # a new shape is no recompilation to complain about
        return True

    def limit(self, run: Run, micro_batch: int) -> None:
        """Compute at most `micro_batch` sequences of `run` at once from now on."""
        if micro_batch < self.micro_batch(run):
            run.micro_limit = _largest_divisor(self._common or run.spec.batch_sequences, micro_batch)

    def _update(self, size: int) -> Ended:
        """Count a pass of `size` sequences, and end the batches that it completes."""
        for run in self.runs:
            run.into += size
        ended = []
        for rows in _ranges([row for row, run in enumerate(self.runs) if run.into == self._part(run)]):
            due = self.runs[rows]
            rates = [run.next_rate() for run in due]
            losses, norms = self.learner.update(rows, rates, [run.next_averaging() for run in due])
            for run, rate in zip(due, rates, strict=True):
                run.step, run.into = run.step + 1, 0
                run.series["lr"].append(rate)
            ended.append((due, losses, norms))
        return ended

    def _keep_history(self, ended: Ended) -> None:
        if not ended:
            return
        losses, norms = (torch.cat([item[i] for item in ended]).tolist() for i in (1, 2))  # type: ignore[misc]
        for run, loss, norm in zip((run for due, _, _ in ended for run in due), losses, norms, strict=True):
            run.series["train_loss"].append(loss)
            run.series["grad_norm"].append(norm)

    def evaluate(self, runs: Sequence[Run]) -> list[tuple[float, float | None]]:
        """Test loss of some of the runs in nats per token, and its standard error over the test text, computed
        together."""
        with self.learner.evaluated([self.runs.index(run) for run in runs]) as logits:
            return evaluate(logits, self.test, self.model, len(runs), self.world)

    def leave(self, run: Run) -> None:
        """Go on without `run`."""
        rows = [row for row, other in enumerate(self.runs) if other is not run]
        self.runs = [self.runs[row] for row in rows]
        if rows:
            self.learner.keep(rows)

    def weights(self, run: Run) -> dict[str, Tensor]:
        """The weights that evaluations of `run` speak of, by name: rank 0's result, empty on the others."""
        return self.learner.gather(self.runs.index(run))

    def state(self, run: Run) -> tuple[dict[str, Tensor], dict[str, Any], Share | None]:
        """Everything that the rest of `run` depends on: tensors, plain data, and this rank's share of what is spread
        over ranks."""
        learned, numbers, share = self.learner.state(self.runs.index(run))
        if not run.into:
            learned = {name: tensor for name, tensor in learned.items() if name not in ("gradients", "loss")}
        tensors, meta = run.state()
        return learned | tensors, meta | {"optimizer": numbers}, share

    def restore(self, run: Run, saved: Checkpoint) -> None:
        """Inverse of `state`. A batch that was not ended begins anew where several ranks share it."""
        self.learner.restore(self.runs.index(run), saved, saved.meta["optimizer"])
        run.restore(saved)
        if self.world.size > 1:
            run.into = 0
        if run.micro_limit:
            run.micro_limit = _largest_divisor(self._common or run.spec.batch_sequences, run.micro_limit)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocation that failed, on a CUDA device or on the CPU (where torch has no type for it),
    here or on another rank."""
    told = any(sign in str(error) for sign in ("allocate memory", "OutOfMemoryError", "MemoryError"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or told


def _ranges(rows: list[int]) -> list[slice]:
    """Ascending numbers as slices of neighbours."""
    starts = [row for row in rows if row - 1 not in rows]
    stops = [row + 1 for row in rows if row + 1 not in rows]
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
