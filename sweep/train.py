"""Train one planned run and leave its record.

    status = train_run(planned, run_dir, corpus, device)

The shell around `sweep.run.Run`: record, checkpoints, evaluations, signals, and the ways in which a run can end. Of
several ranks the first one alone writes the record; all take part in checkpoints.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sweep import checkpoint
from sweep.accounting import count_flops
from sweep.batches import Sequences, check_epochs
from sweep.corpus import Corpus
from sweep.device import device_name, numerics, peak_flops
from sweep.evaluate import evaluation_steps
from sweep.learner import is_sharded
from sweep.lease import Lease
from sweep.manifest import describe
from sweep.model import save_model
from sweep.record import RunRecord, read_status
from sweep.run import BLOCK_STEPS, Run, out_of_memory
from sweep.schema import CHECKPOINT_DIR, InputError
from sweep.spec import PlannedRun
from sweep.world import SINGLE, World

BLOCK_TOKENS = 2**20  # tokens read from the corpus at once
BLOCK_SECONDS = 2.0  # between two looks of several ranks at whether one of them was asked to stop

OnEvaluation = Callable[[dict[str, Any]], None]
Stop = Callable[[], bool]


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
    left a checkpoint and can be resumed. All ranks of `world` call it, `lease` and `on_evaluation` being rank 0's, and
    return the same. Raises, on all ranks, InputError where the corpus does not fit the plan or the record, LeaseLost
    where a later attempt has taken over, and OSError where the record cannot be written.
    """
    record, session = None, None
    try:
        with world.together(), numerics(planned.spec.precision, planned.execution, device), _stop_asked(lease) as stop:
            device = world.device(device)
            world.first(lambda: _check(planned, corpus, world))
            record = RunRecord(run_dir, lease)
            world.first(partial(_begin, record, planned, corpus, device))
            session = _Session(planned, record, corpus, device, on_evaluation, world)
            return session.train(stop)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or record is None or (session and session.keep_smaller_batch()):
            raise
        record.set_status("out_of_memory", error=str(error).partition("\n")[0] or "out of memory")
        return "out_of_memory"


def _check(planned: PlannedRun, corpus: Corpus, world: World) -> None:
    """Raise InputError where text and ranks are not fit for the plan."""
    if planned.data_hash not in (None, corpus.data_hash):
        raise InputError(
            f"data {planned.spec.data.name}: the text has changed since the plan was frozen (hash {corpus.data_hash}, "
            f"planned {planned.data_hash}); restore the text or use another sweep_dir"
        )
    check_epochs(planned.spec, planned.source, corpus)
    is_sharded(planned, world)


def _begin(record: RunRecord, planned: PlannedRun, corpus: Corpus, device: str) -> None:
    spec = planned.spec
    unique = Sequences(corpus.train, spec.model.n_ctx, spec.seed).unique_tokens
    record.begin(planned, describe(corpus, device, unique))


class _Session:
    """One attempt at a run: its state, its record and its clock."""

    def __init__(
        self,
        planned: PlannedRun,
        record: RunRecord,
        corpus: Corpus,
        device: str,
        on_evaluation: OnEvaluation | None,
        world: World,
    ) -> None:
        self.planned, self.record, self.device, self.world = planned, record, device, world
        self.on_evaluation = on_evaluation
        self.started = self.saved = time.perf_counter()
        self.earlier_s = 0.0  # of the attempts before, up to their checkpoint
        self.run = Run(planned, corpus, device, world)
        self.longest_block = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // planned.spec.batch_tokens))
        self.block = self.longest_block if world.size == 1 else 1  # until the time of a step is known
        if found := checkpoint.load_newest(self.folder, world, record.note):
            self.run.restore(found)
            self.earlier_s = found.meta["wall_s"]
        known = world.first(lambda: (read_status(record.run_dir) or {}).get("micro_batch"))
        if known:
            self.run.limit(known)
        world.first(lambda: record.rewind(self.run.rows))

    @property
    def folder(self) -> Path:
        return self.record.run_dir / CHECKPOINT_DIR

    @property
    def wall_s(self) -> float:
        return self.earlier_s + time.perf_counter() - self.started

    def train(self, stop: Stop) -> str:
        """Train to the end, or to the checkpoint that `stop()` asks for; returns the status."""
        run, world = self.run, self.world
        for target in evaluation_steps(self.planned.spec, self.planned.execution):
            while run.step < target:
                asked, due = self._advance(target, stop)
                if reason := run.diverged():
                    return self._end("diverged", reason)
                if asked or due:
                    self._save_if_possible()
                if asked:
                    world.first(lambda: self.record.set_status("running", step=run.step))
                    return "running"
            if not run.rows or run.rows[-1]["step"] < target:
                row = run.evaluate(self.wall_s)
                if not np.isfinite(row["test_loss"]):
                    return self._end("diverged", f"test loss is not finite at step {run.step}")
                world.first(partial(self._report, row))
        self.save()
        if self.planned.execution.save_model:
            weights = run.learner.gather()
            world.first(lambda: self.record.put_folder("model", partial(save_model, self.planned.spec.model, weights)))
        return self._end("done", None)

    def _advance(self, target: int, stop: Stop) -> tuple[bool, bool]:
        """Train a block of steps; returns whether to stop and whether a checkpoint is due, the same on all ranks.

        Several ranks come to agree once a block, which is therefore short; one looks at every step.
        """
        run, world = self.run, self.world
        first, started = run.step, time.perf_counter()
        run.advance(min(target, first + self.block), stop if world.size == 1 else lambda: False)
        now = time.perf_counter()
        late = now - self.saved > self.planned.execution.checkpoint_seconds
        asked, due, noted, seconds = world.most(stop(), late, bool(run.notes), now - started)
        if world.size > 1:
            self.block = max(1, min(self.longest_block, int(BLOCK_SECONDS * (run.step - first) / seconds)))
        if noted:
            for text in chain.from_iterable(world.each(lambda: run.notes)):
                world.first(partial(self.record.note, text))
            run.notes = []
        return bool(asked), bool(due)

    def _report(self, row: dict[str, Any]) -> None:
        self.record.append(row)
        if self.on_evaluation:
            self.on_evaluation(row)

    def save(self) -> None:
        """Write a checkpoint and the steps so far. Raises OSError where that fails: earlier checkpoints stay."""
        tensors, meta, share = self.run.state()
        meta["wall_s"] = self.wall_s
        self.saved = time.perf_counter()
        checkpoint.save(self.folder, self.run.step, tensors, meta, self.record.lease, self.world, share)
        self.world.first(lambda: self.record.write_steps(self.run.series))

    def _save_if_possible(self) -> None:
        try:
            self.save()
        except OSError as error:
            text = f"no checkpoint at step {self.run.step} ({error.strerror}: {error.filename}); the ones before stay"
            self.world.first(partial(self.record.note, text))

    def keep_smaller_batch(self) -> bool:
        """Note for the next attempt that memory wants a smaller micro-batch; False where there is none, or where this
        attempt has tried them all."""
        if self.run.learner.lone_retry or not self.run.shrink():
            return False
        self.record.note(self.run.notes[-1])
        attempt = self.record.lease.number if self.record.lease else 0  # one for all ranks, which come here each
        halved = {*(read_status(self.record.run_dir) or {}).get("halved_in", ()), attempt}
        self.record.set_status("running", micro_batch=self.run.micro_batch, halved_in=sorted(halved))
        return True

    def _end(self, status: str, error: str | None) -> str:
        run, spec = self.run, self.planned.spec
        tokens_per_s = run.step * spec.batch_tokens / max(run.train_s, 1e-9)
        peak = peak_flops(device_name(self.device), spec.precision)
        self.world.first(lambda: self.record.write_steps(run.series))
        final = {
            "error": error,
            "step": run.step,
            "wall_s": self.wall_s,
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * count_flops(spec.model).total / (peak * self.world.size) if peak else None,
            "epochs": run.sequences.epochs(run.step * spec.batch_sequences),
            "micro_batch": run.micro_batch,
            "ranks": self.world.size,
        }
        self.world.first(lambda: self.record.set_status(status, **final))
        return status


@contextmanager
def _stop_asked(lease: Lease | None) -> Iterator[Stop]:
    """Within, SIGTERM and SIGINT make the yielded function return True instead of ending the process; so does the loss
    of `lease`."""
    asked = threading.Event()

    def stop() -> bool:
        return asked.is_set() or (lease is not None and lease.lost)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
