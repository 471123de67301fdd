"""What is known of one training run while it trains: where it stands, its loss history, whether it diverges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweep.accounting import count_flops
from sweep.checkpoint import Checkpoint
from sweep.evaluate import evaluation_steps
from sweep.record import STEP_SERIES
from sweep.schedule import average_coefficient, learning_rate
from sweep.spec import PlannedRun

RISE = 1.5  # a run whose loss exceeds so many times its first one has diverged
CONFIRM = 16  # steps over which the median loss must do so


class Run:
    """One run, whoever trains it."""

    def __init__(self, planned: PlannedRun) -> None:
        """At step 0."""
        self.planned, self.spec = planned, planned.spec
        self.step = 0  # updates done
        self.into = 0  # sequences of the next update's batch that have been seen
        self.checked = 0  # of the updates, those that `diverged` has looked at
        self.series: dict[str, list[float]] = {name: [] for name in STEP_SERIES}
        self.rows: list[dict[str, Any]] = []
        self.targets = evaluation_steps(self.spec, planned.execution)
        self.micro_limit: int | None = None  # where memory ran out
        self.train_s = 0.0

    @property
    def seen(self) -> int:
        """Sequences so far."""
        return self.step * self.spec.batch_sequences + self.into

    @property
    def target(self) -> int | None:
        """The step of the next evaluation; None where all are done."""
        last = self.rows[-1]["step"] if self.rows else 0
        return next((step for step in self.targets if step > last), None)

    def next_rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self.spec.schedule, self.spec.optimizer.lr, self.step)

    def next_averaging(self) -> float:
        """The weight of the next update's result in the average; 1 where none is kept."""
        window = self.spec.weight_average
        return average_coefficient(window, self.step + 1) if window else 1.0

    def evaluated(self, loss: float, error: float | None, elapsed: float) -> dict[str, Any]:
        """Keep the result of an evaluation made now; returns it as the curve's row."""
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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data of a checkpoint."""
        tensors = {f"series.{name}": torch.tensor(self.series[name], dtype=torch.float64) for name in STEP_SERIES}
        return tensors, {
            "step": self.step,
            "into": self.into,
            "rows": self.rows,
            "train_s": self.train_s,
            "micro_limit": self.micro_limit,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Inverse of `state`."""
        meta = saved.meta
        self.series = {name: saved.tensor(f"series.{name}").tolist() for name in STEP_SERIES}
        self.step, self.into = meta["step"], meta.get("into", 0)
        self.rows, self.train_s, self.micro_limit = list(meta["rows"]), meta["train_s"], meta["micro_limit"]
        self.checked = self.step
