"""The training of one stack from its members' checkpoints to their ends: evaluations, checkpoints, records."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sweep import checkpoint
from sweep.accounting import count_flops
from sweep.checkpoint import Checkpoint
from sweep.corpus import Corpus
from sweep.device import device_name, peak_flops
from sweep.lease import Lease, LeaseLost
from sweep.model import save_model
from sweep.record import RunRecord, read_status
from sweep.run import Run
from sweep.schema import CHECKPOINT_DIR, InputError
from sweep.spec import PlannedRun
from sweep.stack import Stack
from sweep.world import World

BLOCK_STEPS = 64  # losses are read from the device, and divergence is looked for, once in so many steps
BLOCK_TOKENS = 2**20  # tokens read from the corpus at once
BLOCK_SECONDS = 2.0  # between two looks of several ranks at whether one of them was asked to stop
SAVING_SHARE = 0.05  # of the time, that the checkpoints of several runs may take

OWN = (LeaseLost, InputError, OSError)  # what a record raises: it concerns the run of that record alone

OnEvaluation = Callable[[dict[str, Any]], None]
Stop = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Member:
    """A run to train, and who cares about it. `unwanted` is asked now and then: True makes the run leave alone."""

    planned: PlannedRun
    run_dir: Path
    lease: Lease | None = None
    on_evaluation: OnEvaluation | None = None
    unwanted: Callable[[], bool] | None = None


Ended = Callable[[Member, str | Exception], None]


@dataclass(eq=False)
class Attempt:
    """A member with its record and the checkpoint that it goes on from."""

    member: Member
    record: RunRecord
    found: Checkpoint | None = None  # until it has been read
    wall_s: float = 0.0  # its share of the time that its stacks have taken, in this attempt and those before

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        return self.member.run_dir / CHECKPOINT_DIR

    @property
    def seen(self) -> int:
        """Sequences seen at the checkpoint."""
        return self.seen_at(self.found)

    def seen_at(self, found: Checkpoint | None) -> int:
        """Sequences seen at `found`; 0 for none."""
        if found is None:
            return 0
        return int(found.meta["step"] * self.member.planned.spec.batch_sequences + found.meta.get("into", 0))

    def read(self, stack: Stack, run: Run) -> None:
        """Bring `run` of `stack` to the checkpoint."""
        if self.found:
            stack.restore(run, self.found)
            self.wall_s, self.found = self.found.meta["wall_s"], None

    @property
    def leaving(self) -> bool:
        """Whether the run should leave by itself: it is not wanted, or has been taken over."""
        lease, unwanted = self.member.lease, self.member.unwanted
        return (lease is not None and lease.lost) or (unwanted is not None and unwanted())


class Session:
    """One stack: its state, its members' records and its clock."""

    def __init__(self, attempts: Sequence[Attempt], corpus: Corpus, device: str, ended: Ended, world: World) -> None:
        """From the attempts' checkpoints, which are at one position."""
        self.world, self.device, self._ended = world, device, ended
        self.counted = self.saved = time.perf_counter()
        self.saving_s = 0.0  # the last checkpoints took
        self.stack = Stack([attempt.member.planned for attempt in attempts], corpus, device, world)
        by_id = {run.spec.run_id: run for run in self.stack.runs}
        self._members = [(attempt, by_id[attempt.member.planned.run_id]) for attempt in attempts]
        self.steps = 1  # of the smallest batch, in a block of several ranks
        for attempt, run in list(self._members):
            attempt.read(self.stack, run)
            self._own(attempt, run, partial(self._rewind, attempt, run))

    @property
    def live(self) -> list[Attempt]:
        """Attempts that have not ended."""
        return [attempt for attempt, _ in self._members]

    def wall_s(self, attempt: Attempt) -> float:
        """Seconds that this run has taken so far: those that runs spent together count in equal parts."""
        now = time.perf_counter()
        for other in self.live:
            other.wall_s += (now - self.counted) / len(self._members)
        self.counted = now
        return attempt.wall_s

    def train(self, stop: Stop) -> None:
        """Train to the end, or to the checkpoints that `stop()` asks for."""
        self._evaluate()
        while self._members:
            asked, due = self._advance(stop)
            reasons = {run: reason for _, run in self._members if (reason := run.diverged())}
            self._secure(reasons)
            for attempt, run in list(self._members):
                if reason := reasons.get(run):
                    self._own(attempt, run, partial(self._end, attempt, run, "diverged", reason))
                elif asked or (attempt.leaving and self.world.size == 1):
                    self._own(attempt, run, partial(self._suspend, attempt, run))
                elif due:
                    self._own(attempt, run, partial(self._save_if_possible, attempt, run))
            if due:
                self.saving_s = time.perf_counter() - self.saved
                self.saved += self.saving_s
            self._evaluate()

    def keep_smaller_batch(self) -> bool:
        """Of a single run: note for the next attempt that memory wants a smaller micro-batch; False where there is
        none, or where this attempt has tried them all."""
        [(attempt, run)] = self._members
        if self.stack.learner.lone_retry or not self.stack.shrink():
            return False
        record = attempt.record
        record.note(self.stack.notes[-1])
        number = record.lease.number if record.lease else 0  # one for all ranks, which come here each
        halved = {*(read_status(record.run_dir) or {}).get("halved_in", ()), number}
        record.set_status("running", micro_batch=self.stack.micro_batch(run), halved_in=sorted(halved))
        return True

    def _rewind(self, attempt: Attempt, run: Run) -> None:
        record = attempt.record
        known = self.world.first(lambda: (read_status(record.run_dir) or {}).get("micro_batch"))
        if known:
            self.stack.limit(run, known)
        self.world.first(lambda: record.rewind(run.rows))

    def _own(self, attempt: Attempt, run: Run, action: Callable[[], None]) -> None:
        """Do something that concerns one run; where it fails, that run leaves. Ranks that share one fail together."""
        try:
            action()
        except OWN as error:
            if self.world.size > 1 or (attempt, run) not in self._members:  # has ended; who was told has failed
                raise
            self._leave(attempt, run, error)

    def _leave(self, attempt: Attempt, run: Run, outcome: str | Exception) -> None:
        self.wall_s(attempt)  # until now it took part
        self._members.remove((attempt, run))
        self.stack.leave(run)
        self._ended(attempt.member, outcome)

    def _advance(self, stop: Stop) -> tuple[bool, bool]:
        """Train a block; returns whether to stop and whether checkpoints are due, the same on all ranks.

        Several ranks come to agree once a block, which is therefore short; one looks at every pass.
        """
        stack, world = self.stack, self.world
        run, started = stack.runs[0], time.perf_counter()
        size, first = run.spec.batch_sequences, run.step
        together = len(stack.runs) * run.spec.batch_tokens
        longest = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // together))
        # ends of batches only, so that no pass depends on where a block ends, and hence on where a run was resumed
        block = (run.step + (longest if world.size == 1 else self.steps)) * size
        events = [run.target * run.spec.batch_sequences for run in stack.runs if run.target]
        stack.advance(min(block, *events), self._interrupted(stop))
        now = time.perf_counter()
        execution = self._members[0][0].member.planned.execution
        pause = self.saving_s / SAVING_SHARE if len(self._members) > 1 else 0.0
        late = now - self.saved > max(execution.checkpoint_seconds, pause)
        asked, due, noted, seconds = world.most(stop() or self._all_leaving(), late, bool(stack.notes), now - started)
        if world.size > 1:
            self.steps = max(1, min(longest, int(BLOCK_SECONDS * (run.step - first) / seconds)))
        if noted:
            for text in chain.from_iterable(world.each(lambda: stack.notes)):
                for attempt, _ in self._members:
                    world.first(partial(attempt.record.note, text))
            stack.notes.clear()
        if due:
            self.saved = now
        return bool(asked), bool(due)

    def _interrupted(self, stop: Stop) -> Stop:
        """Whether to leave a block early; several ranks finish theirs."""
        if self.world.size > 1:
            return lambda: False
        leases = [attempt.member.lease for attempt, _ in self._members if attempt.member.lease]
        return lambda: stop() or any(lease.lost for lease in leases)

    def _all_leaving(self) -> bool:
        """Whether a run that several ranks share should leave, which rank 0 knows."""
        return self.world.size > 1 and any(attempt.leaving for attempt in self.live)

    def _evaluate(self) -> None:
        """Evaluate the runs that are due, and end those that are through."""
        due = [(attempt, run) for attempt, run in self._members if run.step == run.target]
        found = self.stack.evaluate([run for _, run in due]) if due else []
        lost: dict[Run, str] = {}
        for (attempt, run), (loss, error) in zip(due, found, strict=True):
            row = run.evaluated(loss, error, self.wall_s(attempt))
            if np.isfinite(loss):
                self._own(attempt, run, partial(self.world.first, partial(self._report, attempt, row)))
            else:
                lost[run] = f"test loss is not finite at step {run.step}"
        through = [(attempt, run) for attempt, run in self._members if run in lost or run.target is None]
        self._secure([run for _, run in through])
        for attempt, run in through:
            if reason := lost.get(run):
                self._own(attempt, run, partial(self._end, attempt, run, "diverged", reason))
            else:
                self._own(attempt, run, partial(self._finish, attempt, run))

    def _secure(self, leaving: Collection[Run]) -> None:
        """Save the others before some runs leave for good. The last bits of a computation depend on how many take part,
        and a resume has to repeat them; on a GPU it does not in any case."""
        if leaving and self.device == "cpu" and self.world.size == 1:
            for attempt, run in [(attempt, run) for attempt, run in self._members if run not in leaving]:
                self._own(attempt, run, partial(self._save_if_possible, attempt, run))

    def _finish(self, attempt: Attempt, run: Run) -> None:
        self.save(attempt, run)
        if run.planned.execution.save_model:
            weights = self.stack.weights(run)
            write = partial(save_model, run.spec.model, weights)
            self.world.first(lambda: attempt.record.put_folder("model", write))
        self._end(attempt, run, "done", None)

    def _report(self, attempt: Attempt, row: dict[str, Any]) -> None:
        attempt.record.append(row)
        if attempt.member.on_evaluation:
            attempt.member.on_evaluation(row)

    def save(self, attempt: Attempt, run: Run) -> None:
        """Write a checkpoint and the steps so far. Raises OSError where that fails: earlier checkpoints stay."""
        tensors, meta, share = self.stack.state(run)
        meta["wall_s"] = self.wall_s(attempt)
        lease = attempt.record.lease
        checkpoint.save(attempt.folder, run.step, tensors, meta, lease, self.world, share, run.into)
        self.world.first(lambda: attempt.record.write_steps(run.series))

    def _save_if_possible(self, attempt: Attempt, run: Run) -> None:
        try:
            self.save(attempt, run)
        except OSError as error:
            text = f"no checkpoint at step {run.step} ({error.strerror}: {error.filename}); the ones before stay"
            self.world.first(partial(attempt.record.note, text))

    def _suspend(self, attempt: Attempt, run: Run) -> None:
        """Leave the run so that it can be resumed."""
        self._save_if_possible(attempt, run)
        self.world.first(lambda: attempt.record.set_status("running", step=run.step))
        self._leave(attempt, run, "running")

    def _end(self, attempt: Attempt, run: Run, status: str, error: str | None) -> None:
        tokens_per_s = run.step * run.spec.batch_tokens / max(run.train_s, 1e-9)
        peak = peak_flops(device_name(self.device), run.spec.precision)
        self.world.first(lambda: attempt.record.write_steps(run.series))
        final = {
            "error": error,
            "step": run.step,
            "wall_s": self.wall_s(attempt),
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * count_flops(run.spec.model).total / (peak * self.world.size) if peak else None,
            "epochs": self.stack.feed.epochs(run.seen),
            "micro_batch": self.stack.micro_batch(run),
            "ranks": self.world.size,
        }
        self.world.first(lambda: attempt.record.set_status(status, **final))
        self._leave(attempt, run, status)
