"""The ways of training that the benchmark of speed compares, each ready to take steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.baselines import PlainLoop, casting, fresh_model, mean_loss, synchronize, train_trainer
from sweep.batches import Sequences, test_sequences
from sweep.corpus import Corpus
from sweep.session import BLOCK_STEPS, BLOCK_TOKENS
from sweep.spec import PlannedRun
from sweep.stack import Stack, out_of_memory

TEST_TOKENS = 4096  # of the losses by which one sees that an arm trains


@dataclass
class Arm:
    """One way to train, ready to go on."""

    tokens: int  # of a step, all runs together
    advance: Callable[[int], float]  # steps -> seconds
    loss: Callable[[], float]  # on test text in nats per token, mean of the runs
    steps: int = 0  # of a measurement
    first_loss: float = math.nan
    memory: int | None = None  # bytes on a GPU: its own and what its steps need
    speeds: list[float] = field(default_factory=list)  # tokens per second

    def measure(self) -> None:
        """Take the speed once more."""
        self.speeds.append(self.steps * self.tokens / self.advance(self.steps))

    def warm_up(self, seconds: float) -> None:
        """Choose the steps of a measurement so that they take about `seconds` once everything is warm."""
        steps, took = 1, self.advance(1)
        while (took := self.advance(steps)) < seconds / 4:
            steps *= 2
        self.steps = max(1, round(steps * seconds / took))


def ready(make: Callable[[], Arm], device: str, seconds: float) -> Arm | None:
    """An arm that is warm, or None where the memory does not suffice."""
    try:
        before = torch.cuda.memory_allocated() if device != "cpu" else 0
        arm = make()
        arm.first_loss = arm.loss()
        arm.warm_up(seconds)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            arm.advance(arm.steps)
            arm.memory = torch.cuda.max_memory_allocated() - before
        return arm
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def ours(planned: list[PlannedRun], corpus: Corpus, device: str) -> Arm:
    """isoloss: runs as a sweep trains them, in blocks of a session's size."""
    stack, size = Stack(planned, corpus, device), planned[0].spec.batch_sequences
    tokens = len(planned) * planned[0].spec.batch_tokens
    block = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // tokens))

    def advance(steps: int) -> float:
        began, end = time.perf_counter(), stack.seen + steps * size
        while stack.seen < end:
            stack.advance(min(end, stack.seen + block * size), lambda: False)
        return time.perf_counter() - began  # the losses have been read back

    return Arm(tokens, advance, lambda: statistics.fmean(loss for loss, _ in stack.evaluate(stack.runs)))


def plain(planned: PlannedRun, corpus: Corpus, device: str) -> Arm:
    """The loop over the transformers model."""
    spec = planned.spec
    loop, size = PlainLoop(spec, device), spec.batch_sequences
    sequences = Sequences(corpus.train, spec.model.n_ctx, spec.seed)

    def advance(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            batch = torch.from_numpy(sequences.samples(loop.steps * size, size)).to(device)
            loop.step(batch[:, :-1], batch[:, 1:])
        synchronize(device)
        return time.perf_counter() - began

    test = torch.from_numpy(test_sequences(corpus.test, spec.model.n_ctx, TEST_TOKENS)).to(device)
    return Arm(spec.batch_tokens, advance, lambda: loop.evaluate(test))


def trainer(planned: PlannedRun, corpus: Corpus, device: str, folder: Path) -> Arm:
    """transformers' Trainer; every call is a training of its own, which goes on with the same weights."""
    spec = planned.spec
    model, sequences = fresh_model(spec, device), Sequences(corpus.train, spec.model.n_ctx, spec.seed)
    test = torch.from_numpy(test_sequences(corpus.test, spec.model.n_ctx, TEST_TOKENS)).to(device)

    def advance(steps: int) -> float:
        return train_trainer(model, spec, sequences, device, 3, steps, folder)

    return Arm(spec.batch_tokens, advance, lambda: mean_loss(model, test, casting(spec.precision, device)))
