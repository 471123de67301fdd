"""The state of one training run and how it moves on: what learns, data position, loss history.

Everything here belongs to one run and nothing is global, so that several runs can live in one process. On several ranks
each one has the same run, trains it on its share of every batch, and knows the same history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweep.accounting import count_flops
from sweep.batches import Sequences, test_sequences
from sweep.checkpoint import Checkpoint, Share
from sweep.corpus import Corpus
from sweep.evaluate import evaluate
from sweep.learner import make_learner
from sweep.record import STEP_SERIES
from sweep.schedule import average_coefficient, learning_rate
from sweep.spec import PlannedRun
from sweep.world import SINGLE, World

BLOCK_STEPS = 64  # losses are read from the device, and divergence is looked for, once in so many steps
RISE = 1.5  # a run whose loss exceeds so many times its first one has diverged
CONFIRM = 16  # steps over which the median loss must do so


class Run:
    """The state of one run, and how it moves on."""

    def __init__(self, planned: PlannedRun, corpus: Corpus, device: str, world: World = SINGLE) -> None:
        """A run at step 0, on this rank's `device`."""
        spec = planned.spec
        self.spec, self.execution, self.device, self.world = spec, planned.execution, device, world
        self.learner = make_learner(planned, device, world)
        self.share = world.share(spec.batch_sequences)  # of each batch
        largest, smallest = -(-spec.batch_sequences // world.size), spec.batch_sequences // world.size
        self.parted = spec.batch_sequences  # what a micro-batch has to divide
        self.micro_batch = min(self.execution.micro_batch or largest, largest)
        if self.execution.compile:  # one shape, compiled once, on all ranks
            self.parted = math.gcd(largest, smallest)
            self.micro_batch = _largest_divisor(self.parted, self.micro_batch)
        self.micro_limit: int | None = None  # where memory ran out
        self.sequences = Sequences(corpus.train, spec.model.n_ctx, spec.seed)
        test = test_sequences(corpus.test, spec.model.n_ctx, spec.data.test_tokens)
        self.test = torch.from_numpy(test).to(device)
        self.step = self.checked = 0  # updates done; those of them that `diverged` has looked at
        self.series: dict[str, list[float]] = {name: [] for name in STEP_SERIES}
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []  # what this rank wants told to people
        self.train_s = 0.0

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Train until step `until` or, sooner, until `stop()`. Reads the device once, at the end."""
        started, first, size = time.perf_counter(), self.step, self.spec.batch_sequences
        read = self.sequences.samples(first * size, (until - first) * size)
        read = read.reshape(until - first, size, self.spec.model.n_ctx + 1)[:, self.share]
        samples = torch.from_numpy(read).to(self.device)
        tokens, targets = samples[..., :-1].contiguous(), samples[..., 1:].contiguous()
        losses, norms = [], []
        for k in range(until - first):
            if stop():
                break
            self._accumulate(tokens[k], targets[k])
            losses.append(self.learner.reduce())
            norms.append(self._update())
        if losses:
            self.series["train_loss"] += torch.stack(losses).tolist()
            self.series["grad_norm"] += torch.stack(norms).tolist()
        self.train_s += time.perf_counter() - started

    def _accumulate(self, tokens: Tensor, targets: Tensor) -> None:
        """The gradients of this rank's share [sequences, n_ctx] of one batch. Where memory runs out it is done again
        with a smaller micro-batch."""
        while True:
            try:
                return self.learner.accumulate(tokens, targets, self.micro_batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or not self.learner.lone_retry or self.micro_batch == 1:
                    raise
            self.shrink()  # here, where nothing holds what the failed pass had computed

    def shrink(self) -> bool:
        """Halve the micro-batch, to the next divisor of the batch; False where it is one sequence."""
        before = self.micro_batch
        if before == 1:
            return False
        self.limit(before // 2)
        self.notes.append(f"out of memory with a micro-batch of {before} sequences; going on with {self.micro_batch}")
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        torch.compiler.reset()  # a new shape is no recompilation to complain about
        return True

    def limit(self, micro_batch: int) -> None:
        """Compute at most `micro_batch` sequences at once from now on."""
        if micro_batch < self.micro_batch:
            self.micro_limit = self.micro_batch = _largest_divisor(self.parted, micro_batch)

    def _update(self) -> Tensor:
        """One optimiser step from the accumulated gradients; returns their norm before clipping, on the device."""
        lr = learning_rate(self.spec.schedule, self.spec.optimizer.lr, self.step)
        self.step += 1
        window = self.spec.weight_average
        norm = self.learner.update(lr, average_coefficient(window, self.step) if window else None)
        self.series["lr"].append(lr)
        return norm

    def evaluate(self, elapsed: float) -> dict[str, Any]:
        """Evaluate now; returns the curve's row and keeps it."""
        with self.learner.evaluated() as logits:
            loss, error = evaluate(logits, self.test, self.spec.model, self.world)
        since = self.rows[-1]["step"] if self.rows else 0
        tokens = self.step * self.spec.batch_tokens
        row = {
            "step": self.step,
            "tokens": tokens,
            "flops": count_flops(self.spec.model).matrices * tokens,
            "train_loss": float(np.mean(self.series["train_loss"][since:])),
            "test_loss": loss,
            "test_loss_se": error,
            "lr": self.series["lr"][-1],
            "grad_norm": self.series["grad_norm"][-1],
            "elapsed_s": elapsed,
        }
        self.rows.append(row)
        return row

    def diverged(self) -> str | None:
        """Why the run counts as diverged, or None: a loss or gradient that is not finite, or a median loss after
        warm-up of RISE times the first one. Looks at the steps since it was last asked; when that is does not matter.
        """
        losses, norms = self.series["train_loss"], self.series["grad_norm"]
        new, self.checked = range(self.checked, self.step), self.step
        for name, values in (("loss", losses), ("gradient norm", norms)):
            if bad := next((i + 1 for i in new if not math.isfinite(values[i])), None):
                return f"{name} is not finite at step {bad}"
        for end in (i + 1 for i in new if (i + 1) % CONFIRM == 0 or i + 1 == self.spec.steps):
            late = losses[self.spec.schedule.warmup_steps : end][-CONFIRM:]
            enough = len(late) == CONFIRM or (late and end == self.spec.steps)  # a short run is judged at its end
            if enough and float(np.median(late)) > RISE * losses[0]:
                return f"loss rose from {losses[0]:.3g} to {float(np.median(late)):.3g} by step {end}"
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any], Share | None]:
        """Everything that the rest of the run depends on: tensors, plain data, and this rank's share of what is spread
        over ranks."""
        tensors, numbers, share = self.learner.state()
        for name, values in self.series.items():
            tensors[f"series.{name}"] = torch.tensor(values, dtype=torch.float64)
        meta = {
            "step": self.step,
            "rows": self.rows,
            "train_s": self.train_s,
            "micro_limit": self.micro_limit,
            "optimizer": numbers,
        }
        return tensors, meta, share

    def restore(self, saved: Checkpoint) -> None:
        """Inverse of `state`."""
        meta = saved.meta
        self.learner.restore(saved, meta["optimizer"])
        self.series = {name: saved.tensor(f"series.{name}").tolist() for name in STEP_SERIES}
        self.step, self.rows, self.train_s = meta["step"], list(meta["rows"]), meta["train_s"]
        self.checked = self.step
        if meta["micro_limit"]:
            self.limit(meta["micro_limit"])


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocation that failed, on a CUDA device or on the CPU (where torch has no type for it),
    here or on another rank."""
    told = any(sign in str(error) for sign in ("allocate memory", "OutOfMemoryError", "MemoryError"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or told


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
