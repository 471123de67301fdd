"""What a person sees while a sweep runs: one bar over its FLOPs with the time left, and one line a finished run.

Without a terminal there is no bar, only the lines.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from sweep.launch.freeze import Frozen
from sweep.spec import PlannedRun
from sweep.stored import last_evaluation


class Progress:
    """Shows a sweep's progress on stdout. `left` are the runs this start will train."""

    def __init__(self, frozen: Frozen, left: list[PlannedRun]) -> None:
        self.number = {run.run_id: i + 1 for i, run in enumerate(frozen.runs)}
        self.started = time.monotonic()
        self.done: dict[str, float] = {}  # run_id -> FLOPs
        self.rows: dict[str, dict[str, Any]] = {}
        for run in left:
            self.rows[run.run_id] = last_evaluation(frozen.run_dir(run)) or {}
            self.done[run.run_id] = self.rows[run.run_id].get("flops", 0.0)
        self.bar = tqdm(
            total=sum(run.costs["flops"] for run in left),
            initial=sum(self.done.values()),
            unit="FLOP",
            unit_scale=True,
            smoothing=0.05,
            disable=not sys.stdout.isatty(),
            file=sys.stdout,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.write(line, file=sys.stdout)

    def evaluated(self, planned: PlannedRun, row: dict[str, Any]) -> None:
        """A run has reached an evaluation."""
        self.rows[planned.run_id] = row
        self._reach(planned, row["flops"])

    def ended(self, planned: PlannedRun, status: str, error: str | None) -> None:
        """A run has ended and will not be trained again in this sweep."""
        self._reach(planned, planned.costs["flops"])
        spec = planned.spec
        loss = self.rows[planned.run_id].get("test_loss")
        line = (
            f"{time.monotonic() - self.started:7.0f} s  {self.number[planned.run_id]:>4}/{len(self.number)}  "
            f"{planned.run_id}  {spec.model.n_layer}x{spec.model.d_model:<5} B={spec.batch_tokens:<7} "
            f"lr={spec.optimizer.lr:<10.6g} seed={spec.seed}  {status:<8}"
        )
        line += f"  loss {loss:.4f}" if loss is not None else ""
        self.say(line + (f"  {error}" if error else ""))

    def _reach(self, planned: PlannedRun, flops: float) -> None:
        # An earlier attempt may have got further than the checkpoint this one started from.
        if flops > self.done[planned.run_id]:
            self.bar.update(flops - self.done[planned.run_id])
            self.done[planned.run_id] = flops
