"""The state of one training run and how it moves on: weights, optimiser, data position, loss history.

Everything here belongs to one run and nothing is global, so that several runs can live in one process.
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
from sweep.corpus import Corpus
from sweep.device import autocast
from sweep.evaluate import evaluate
from sweep.forward import Forward, Weights, forward_function, summed_loss
from sweep.model import initial_parameters
from sweep.optimizer import FlatWeights, clip, make_optimizer, optimizer_tensors, restore_optimizer
from sweep.record import STEP_SERIES
from sweep.schedule import average_coefficient, learning_rate
from sweep.spec import PlannedRun

BLOCK_STEPS = 64  # losses are read from the device, and divergence is looked for, once in so many steps
RISE = 1.5  # a run whose loss exceeds so many times its first one has diverged
CONFIRM = 16  # steps over which the median loss must do so

BatchLoss = Callable[[Weights, Tensor, Tensor, int], Tensor]


class Run:
    """The state of one run, and how it moves on."""

    def __init__(self, planned: PlannedRun, corpus: Corpus, device: str) -> None:
        """A run at step 0, on `device`."""
        spec = planned.spec
        self.spec, self.execution, self.device = spec, planned.execution, device
        self.flat = FlatWeights(initial_parameters(spec.model, spec.seed), device)
        self.average = self.flat.values.clone() if spec.weight_average else None
        self.optimizer = make_optimizer(spec.optimizer, self.flat)
        self.forward = forward_function(spec.model, device)
        self.autocast = autocast(spec.precision, device)
        self.micro_batch = min(self.execution.micro_batch or spec.batch_sequences, spec.batch_sequences)
        self.batch_loss = _batch_loss(self.forward)
        if self.execution.compile:
            self.micro_batch = _largest_divisor(spec.batch_sequences, self.micro_batch)  # one shape, compiled once
            self.batch_loss = torch.compile(self.batch_loss, fullgraph=True, dynamic=False)
        self.sequences = Sequences(corpus.train, spec.model.n_ctx, spec.seed)
        test = test_sequences(corpus.test, spec.model.n_ctx, spec.data.test_tokens)
        self.test = torch.from_numpy(test).to(device)
        self.step = 0
        self.series: dict[str, list[float]] = {name: [] for name in STEP_SERIES}
        self.rows: list[dict[str, Any]] = []
        self.train_s = 0.0

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Train until step `until` or, sooner, until `stop()`. Reads the device once, at the end."""
        started, first, size = time.perf_counter(), self.step, self.spec.batch_sequences
        read = self.sequences.samples(first * size, (until - first) * size)
        samples = torch.from_numpy(read).to(self.device)
        tokens, targets = samples[:, :-1].contiguous(), samples[:, 1:].contiguous()
        losses, norms = [], []
        for k in range(until - first):
            if stop():
                break
            batch = slice(k * size, (k + 1) * size)
            losses.append(self._gradients(tokens[batch], targets[batch]))
            norms.append(self._update())
        if losses:
            self.series["train_loss"] += torch.stack(losses).tolist()
            self.series["grad_norm"] += torch.stack(norms).tolist()
        self.train_s += time.perf_counter() - started

    def _gradients(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradients of one batch [sequences, n_ctx]; returns its loss on the device. Where a CUDA
        device runs out of memory the batch is done again with the next smaller micro-batch that divides it."""
        while True:
            self.flat.gradients.zero_()
            total = tokens.new_zeros((), dtype=torch.float32)
            try:
                for x, y in zip(tokens.split(self.micro_batch), targets.split(self.micro_batch), strict=True):
                    with self.autocast:
                        loss = self.batch_loss(self.flat.weights, x, y, self.spec.batch_tokens)
                    loss.backward()
                    total += loss.detach()
                return total
            except torch.OutOfMemoryError:
                if self.execution.micro_batch or self.micro_batch == 1:
                    raise
            self.micro_batch = _largest_divisor(self.spec.batch_sequences, self.micro_batch - 1)
            torch.cuda.empty_cache()
            torch.compiler.reset()  # a new shape is no recompilation to complain about

    def _update(self) -> Tensor:
        """One optimiser step from the accumulated gradients; returns their norm before clipping, on the device."""
        norm = clip(self.flat.gradients, self.spec.optimizer.grad_clip)
        lr = learning_rate(self.spec.schedule, self.spec.optimizer.lr, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.series["lr"].append(lr)
        if self.average is not None:
            self.average.lerp_(self.flat.values, average_coefficient(self.spec.weight_average, self.step))
        return norm

    def evaluated_weights(self) -> Weights:
        """The weights that evaluations speak of: the average where one is kept, else the last."""
        return self.flat.weights if self.average is None else self.flat.views(self.average)

    def evaluate(self, elapsed: float) -> dict[str, Any]:
        """Evaluate now; returns the curve's row and keeps it."""
        loss, error = evaluate(self.forward, self.evaluated_weights(), self.test, self.spec.model, self.autocast)
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
        warm-up of RISE times the first one."""
        losses, norms = self.series["train_loss"], self.series["grad_norm"]
        for name, values in (("loss", losses), ("gradient norm", norms)):
            bad = next((i for i, v in enumerate(values[-BLOCK_STEPS:]) if not math.isfinite(v)), None)
            if bad is not None:
                return f"{name} is not finite at step {len(values) - len(values[-BLOCK_STEPS:]) + bad + 1}"
        late = losses[self.spec.schedule.warmup_steps :][-CONFIRM:]
        enough = len(late) == CONFIRM or (late and self.step == self.spec.steps)  # a short run is judged at its end
        if enough and float(np.median(late)) > RISE * losses[0]:
            return f"loss rose from {losses[0]:.3g} to {float(np.median(late)):.3g} by step {self.step}"
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the run depends on: tensors and plain data."""
        tensors, numbers = optimizer_tensors(self.optimizer)
        tensors["weights"] = self.flat.values
        if self.average is not None:
            tensors["average"] = self.average
        for name, values in self.series.items():
            tensors[f"series.{name}"] = torch.tensor(values, dtype=torch.float64)
        meta = {
            "step": self.step,
            "rows": self.rows,
            "train_s": self.train_s,
            "micro_batch": self.micro_batch,
            "optimizer": numbers,
        }
        return tensors, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Inverse of `state`."""
        restore_optimizer(self.optimizer, {**tensors, **meta["optimizer"]})
        self.flat.values.copy_(tensors["weights"])
        if self.average is not None:
            self.average.copy_(tensors["average"])
        self.series = {name: tensors[f"series.{name}"].tolist() for name in STEP_SERIES}
        self.step, self.rows, self.train_s = meta["step"], list(meta["rows"]), meta["train_s"]
        self.micro_batch = meta["micro_batch"]


def _batch_loss(forward: Forward) -> BatchLoss:
    """The share of a batch's mean loss that some of its sequences contribute: their sum over all its tokens."""

    def batch_loss(weights: Weights, tokens: Tensor, targets: Tensor, batch_tokens: int) -> Tensor:
        return summed_loss(forward(weights, tokens), targets.reshape(-1)) / batch_tokens

    return batch_loss


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
