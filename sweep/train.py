"""Train the planned runs of one stack and leave their records.

    train_runs(members, corpus, device, ended)
    status = train_run(planned, run_dir, corpus, device)

Members begin, those at one position of their checkpoints form a stack, and a `Session` trains each stack. Of several
ranks the first one alone writes the records; all take part in checkpoints.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sweep import checkpoint
from sweep.batches import check_epochs, windows
from sweep.checkpoint import Checkpoint
from sweep.corpus import Corpus
from sweep.device import numerics
from sweep.learner import is_sharded
from sweep.lease import Lease
from sweep.manifest import describe
from sweep.record import RunRecord
from sweep.schema import InputError
from sweep.session import OWN, Attempt, Ended, Member, OnEvaluation, Session, Stop
from sweep.spec import PlannedRun
from sweep.stack import out_of_memory
from sweep.world import SINGLE, World


def train_run(
    planned: PlannedRun,
    run_dir: Path,
    corpus: Corpus,
    device: str,
    on_evaluation: OnEvaluation | None = None,
    lease: Lease | None = None,
    world: World = SINGLE,
) -> str:
    """Train `planned` alone in `run_dir`, going on from its newest checkpoint; returns the status it ends in, or raises
    what `train_runs` says of it."""
    outcomes: list[str | Exception] = []
    member = Member(planned, run_dir, lease, on_evaluation)
    train_runs([member], corpus, device, lambda _, outcome: outcomes.append(outcome), world)
    [outcome] = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_runs(members: Sequence[Member], corpus: Corpus, device: str, ended: Ended, world: World = SINGLE) -> None:
    """Train runs of one shape, text and precision together, each in its folder and from its newest checkpoint.

    `ended` hears of each member as soon as it ends: "done", "diverged" and "out_of_memory" are results; "running" means
    that SIGTERM, SIGINT or the member's `unwanted` asked it to stop: it has left a checkpoint and can be resumed. An
    exception concerns this member alone: InputError where the corpus does not fit the plan or the record, LeaseLost
    where a later attempt has taken over, OSError where its record cannot be written. Raises what concerns all who have
    not ended. All ranks of `world` call it for one member, whose lease and callbacks are rank 0's, and hear the same.
    """
    first = members[0].planned
    with world.together(), numerics(first.spec.precision, first.execution, device), _stop_asked() as stop:
        device = world.device(device)
        n_ctx = first.spec.model.n_ctx
        unique = len(windows(corpus.train, n_ctx)) * n_ctx
        manifest = world.first(lambda: describe(corpus, device, unique))
        attempts = []
        for member in members:
            try:
                attempts.append(_begin(member, corpus, manifest, world))
            except OWN as error:
                if world.size > 1:
                    raise
                ended(member, error)
        waiting = _by_position(attempts, world)
        while waiting:
            waiting = _train(waiting[0], corpus, device, ended, world, stop) + waiting[1:]


def _begin(member: Member, corpus: Corpus, manifest: dict[str, Any], world: World) -> Attempt:
    """Check that the run can be trained, and note the attempt."""
    planned = member.planned
    world.first(partial(_check, planned, corpus, world))
    record = RunRecord(member.run_dir, member.lease)
    world.first(lambda: record.begin(planned, manifest))
    return Attempt(member, record)


def _check(planned: PlannedRun, corpus: Corpus, world: World) -> None:
    """Raise InputError where text and ranks are not fit for the plan."""
    if planned.data_hash not in (None, corpus.data_hash):
        raise InputError(
            f"data {planned.spec.data.name}: the text has changed since the plan was frozen (hash {corpus.data_hash}, "
            f"planned {planned.data_hash}); restore the text or use another sweep_dir"
        )
    check_epochs(planned.spec, planned.source, corpus)
    is_sharded(planned, world)


def _by_position(attempts: Sequence[Attempt], world: World) -> list[list[Attempt]]:
    """The attempts with the checkpoints that they go on from, those at one position together. Where a kill has left
    some one checkpoint ahead of others, all go on from the one that they have in common."""
    for attempt in attempts:
        attempt.found = checkpoint.load_newest(attempt.folder, world, attempt.record.note)
    if world.size == 1 and (common := _common(attempts)):
        for attempt, found in zip(attempts, common, strict=True):
            attempt.found = found
    groups: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.seen, []).append(attempt)
    return list(groups.values())


def _common(attempts: Sequence[Attempt]) -> list[Checkpoint] | None:
    """Checkpoints of all attempts at one position, the last there is; None where there is none."""
    at = min((attempt.seen for attempt in attempts), default=0)
    while at:
        found = [
            checkpoint.load_newest(attempt.folder, wanted=partial(_not_beyond, attempt, at)) for attempt in attempts
        ]
        seen = [attempt.seen_at(saved) for attempt, saved in zip(attempts, found, strict=True)]
        if min(seen) == at:
            return [saved for saved in found if saved]
        at = min(seen)
    return None


def _not_beyond(attempt: Attempt, seen: int, position: checkpoint.Position) -> bool:
    step, into = position
    return step * attempt.member.planned.spec.batch_sequences + into <= seen


def _train(
    attempts: list[Attempt], corpus: Corpus, device: str, ended: Ended, world: World, stop: Stop
) -> list[list[Attempt]]:
    """Train one stack to its end; returns what has to be trained in its place where memory ran out."""
    session = None
    try:
        session = Session(attempts, corpus, device, ended, world)
        session.train(stop)
        return []
    except (MemoryError, RuntimeError) as error:
        left = session.live if session else attempts
        if not out_of_memory(error) or (len(left) == 1 and session and session.keep_smaller_batch()):
            raise
        said = str(error).partition("\n")[0] or "out of memory"
    del session  # with all its tensors
    if len(left) == 1:
        left[0].record.set_status("out_of_memory", error=said)
        ended(left[0].member, "out_of_memory")
        return []
    halves = [left[: len(left) // 2], left[len(left) // 2 :]]
    for attempt in left:
        attempt.record.note(f"out of memory with {len(left)} runs at once; going on with half of them at a time")
    return [group for half in halves for group in _by_position(half, world)]


@contextmanager
def _stop_asked() -> Iterator[Stop]:
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
