"""Train one planned run and leave its record.

    status = train_run(planned, run_dir, corpus, device)

The shell around `sweep.run.Run`: record, checkpoints, evaluations, signals, and the ways in which a run can end.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweep import checkpoint
from sweep.accounting import count_flops
from sweep.batches import Sequences, check_epochs
from sweep.corpus import Corpus
from sweep.device import device_name, numerics, peak_flops
from sweep.evaluate import evaluation_steps
from sweep.lease import Lease
from sweep.manifest import describe
from sweep.model import save_model
from sweep.record import RunRecord
from sweep.run import BLOCK_STEPS, Run
from sweep.schema import CHECKPOINT_DIR, InputError
from sweep.spec import PlannedRun
from sweep.world import SINGLE, World

BLOCK_TOKENS = 2**20  # tokens read from the corpus at once

OnEvaluation = Callable[[dict[str, Any]], None]


def train_run(
    planned: PlannedRun,
    run_dir: Path,
    corpus: Corpus,
    device: str,
    on_evaluation: OnEvaluation | None = None,
    lease: Lease | None = None,
    world: World = SINGLE,
) -> str:
    """Train `planned` in `run_dir`, going on from its newest checkpoint; returns the status it ends in.

    "done", "diverged" and "out_of_memory" are results. "running" means that SIGTERM or SIGINT asked it to stop: it has
    left a checkpoint and can be resumed. Raises InputError where the corpus does not fit the plan or the record.
    """
    spec = planned.spec
    if planned.data_hash not in (None, corpus.data_hash):
        raise InputError(
            f"data {spec.data.name}: the text has changed since the plan was frozen (hash {corpus.data_hash}, planned "
            f"{planned.data_hash}); restore the text or use another sweep_dir"
        )
    check_epochs(spec, planned.source, corpus)
    with numerics(spec.precision, planned.execution, device), _stop_signals() as stop:
        record = RunRecord(run_dir, lease)
        unique = Sequences(corpus.train, spec.model.n_ctx, spec.seed).unique_tokens
        record.begin(planned, describe(corpus, device, unique))
        try:
            return _Session(planned, record, corpus, device, on_evaluation).train(stop)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            record.set_status("out_of_memory", error=str(error).partition("\n")[0] or "out of memory")
            return "out_of_memory"


class _Session:
    """One attempt at a run: its state, its record and its clock."""

    def __init__(
        self, planned: PlannedRun, record: RunRecord, corpus: Corpus, device: str, on_evaluation: OnEvaluation | None
    ) -> None:
        self.planned, self.record, self.device, self.on_evaluation = planned, record, device, on_evaluation
        self.started = self.saved = time.perf_counter()
        self.earlier_s = 0.0  # of the attempts before, up to their checkpoint
        self.run = Run(planned, corpus, device)
        if found := checkpoint.load_newest(self.folder):
            tensors, meta = found
            self.run.restore(tensors, meta)
            self.earlier_s = meta["wall_s"]
        record.rewind(self.run.rows)

    @property
    def folder(self) -> Path:
        return self.record.run_dir / CHECKPOINT_DIR

    @property
    def wall_s(self) -> float:
        return self.earlier_s + time.perf_counter() - self.started

    def train(self, stop: Callable[[], bool]) -> str:
        """Train to the end, or to the checkpoint that `stop()` asks for; returns the status."""
        spec, run = self.planned.spec, self.run
        block = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // spec.batch_tokens))
        for target in evaluation_steps(spec, self.planned.execution):
            while run.step < target:
                run.advance(min(target, run.step + block), stop)
                if reason := run.diverged():
                    return self._end("diverged", reason)
                if stop():
                    self.save()
                    self.record.set_status("running", step=run.step)
                    return "running"
                if time.perf_counter() - self.saved > self.planned.execution.checkpoint_seconds:
                    self.save()
            if not run.rows or run.rows[-1]["step"] < target:
                row = run.evaluate(self.wall_s)
                if not np.isfinite(row["test_loss"]):
                    return self._end("diverged", f"test loss is not finite at step {run.step}")
                self.record.append(row)
                if self.on_evaluation:
                    self.on_evaluation(row)
        self.save()
        if self.planned.execution.save_model:
            save_model(spec.model, dict(run.evaluated_weights()), self.record.run_dir / "model")
        return self._end("done", None)

    def save(self) -> None:
        """Write a checkpoint and the steps so far."""
        tensors, meta = self.run.state()
        checkpoint.save(self.folder, self.run.step, tensors, {**meta, "wall_s": self.wall_s})
        self.record.write_steps(self.run.series)
        self.saved = time.perf_counter()

    def _end(self, status: str, error: str | None) -> str:
        run, spec = self.run, self.planned.spec
        tokens_per_s = run.step * spec.batch_tokens / max(run.train_s, 1e-9)
        peak = peak_flops(device_name(self.device), spec.precision)
        self.record.write_steps(run.series)
        self.record.set_status(
            status,
            error=error,
            step=run.step,
            wall_s=self.wall_s,
            tokens_per_s=tokens_per_s,
            mfu=tokens_per_s * count_flops(spec.model).total / peak if peak else None,
            epochs=run.sequences.epochs(run.step * spec.batch_sequences),
            micro_batch=run.micro_batch,
        )
        return status


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT make the yielded function return True instead of ending the process."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in heeded}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an allocation that failed, on a CUDA device or on the CPU (where torch has no type for it)."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
