"""Which runs are trained as one stacked model, and in which order stacks start.

A pass over a small model is mostly the overhead of calls, which the runs of a stack share; the products of several runs
take longer than one of the same size. They go through their sequences in step: a pass has as many of each run as divide
all their batches, so that runs whose batches have a small common divisor keep apart, and so do large batches on a CPU.
A stack is trained by one worker, hence a group of runs is divided where other workers would wait for it.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sweep.accounting import count_params
from sweep.estimate import Machine, evaluation_seconds, pass_costs, stack_phases
from sweep.ladder import activation_bytes, largest_divisor
from sweep.phases import PassCosts, phases
from sweep.spec import Execution, PlannedRun

RUN_BYTES = 20  # a parameter: weights, gradients, two moments, average
# Tokens of a pass, all runs together: more no longer share the overhead by much and leave the caches.
PASS_TOKENS = {"cpu": 4096, "cuda": 131072}
LEAST_GAIN = 0.02  # share of the time of its runs one by one that a stack has to save
FINER = (1, 2, 4)  # stacks at a worker's share of the whole, and smaller ones, which end more evenly
CLEARLY = 0.98  # of the time to the end that smaller stacks have to stay below, since they share less


def stacks(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """`runs` by their stack, a run without one by itself. Stacks stand where their first run does, and members in the
    order of `runs`."""
    found: dict[tuple[str, int | str], list[PlannedRun]] = {}
    for run in runs:
        key = ("alone", run.run_id) if run.stack is None else ("stack", run.stack)
        found.setdefault(key, []).append(run)
    return list(found.values())


def in_order(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """The stacks of `runs` as they start: lower priorities first, of equals the longest first."""
    return sorted(stacks(runs), key=lambda stack: (min(run.priority for run in stack), -sum(map(expected_cost, stack))))


def seconds_to_end(items: Iterable[float], workers: int) -> float:
    """Seconds until `workers` that take one item after another, each of so many seconds, have done them all."""
    ends = [0.0] * workers
    for seconds in items:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def group(
    runs: Sequence[PlannedRun], workers: int, target: Machine, least_seconds: float = 0.0, keep_micro: bool = False
) -> list[PlannedRun]:
    """`runs`, in their order, with the stacks that bring the sweep to its end soonest on `workers` of `target`, by the
    assumed costs of a pass, and the micro-batches that suit them.

    A stack of up to `least_seconds` is not divided for balance. With `keep_micro` the micro-batches stay as they are.
    """
    groups: dict[Hashable, list[PlannedRun]] = {}
    alone: list[PlannedRun] = []
    for run in runs:
        if target.ranks == 1 and _stackable(run):
            groups.setdefault(_likeness(run), []).append(run)
        else:
            alone.append(run)
    families = [family for members in groups.values() for family in _families(members, target, keep_micro)]
    singles = [(run.priority, expected_cost(run)) for run in alone]
    share = (sum(family.seconds for family in families) + sum(seconds for _, seconds in singles)) / workers
    bounds = [max(share / parts, least_seconds) for parts in (FINER if workers > 1 else FINER[:1])]
    divisions = [[stack for family in families for stack in family.divided(bound)] for bound in dict.fromkeys(bounds)]
    if not least_seconds:
        divisions.append([family.together([member]) for family in families for member in family.members])
    best: list[_Stack] = []
    soonest = math.inf
    for found in divisions:
        items = sorted([*singles, *((s.priority, s.seconds) for s in found)], key=lambda item: (item[0], -item[1]))
        end = seconds_to_end((seconds for _, seconds in items), workers)
        if end < CLEARLY * soonest:
            best, soonest = found, end
    return _assigned(runs, best)


def expected_cost(planned: PlannedRun) -> float:
    """Estimated seconds where the plan knows them, else FLOPs; only the order matters."""
    return planned.costs.get("seconds") or planned.costs.get("flops", 0.0)


def _stackable(run: PlannedRun) -> bool:
    whole = count_params(run.spec.model).total < run.execution.shard_above
    return whole and run.spec.optimizer.name == "adamw"


def _likeness(run: PlannedRun) -> Hashable:
    """What the runs of a stack have in common."""
    spec = run.spec
    execution = _with_micro(run.execution, None)
    return spec.model, spec.data, spec.precision, spec.weight_average > 0, run.source, execution, run.priority


@lru_cache(maxsize=4096)
def _with_micro(execution: Execution, micro: int | None) -> Execution:
    return dataclasses.replace(execution, micro_batch=micro)


@dataclass(frozen=True)
class _Member:
    """What the division of a group needs to know of a run."""

    run: PlannedRun
    sequences: int  # of the whole run
    batch: int  # sequences
    evaluations: float  # seconds
    alone: float  # seconds by itself


@dataclass(frozen=True)
class _Stack:
    """Runs that are trained together, the longest first, with the micro-batch of each."""

    members: Sequence[_Member]
    micros: Sequence[int | None]
    seconds: float

    @property
    def priority(self) -> int:
        return self.members[0].run.priority


@dataclass(frozen=True)
class _Family:
    """Runs that may share a stack, by batch and length."""

    members: list[_Member]
    costs: PassCosts
    room: int  # sequences of a pass, all runs together
    most: int  # runs of a stack
    keep_micro: bool

    @cached_property
    def seconds(self) -> float:
        """Of all its stacks, on one worker."""
        return sum(stack.seconds for stack in self.divided(math.inf))

    def divided(self, bound: float) -> list[_Stack]:
        """Stacks of about equal length, of at most `bound` seconds as far as shares of the whole tell, and single runs
        where a stack saves too little. Neighbours stay together: the smallest batches have the most calls to share."""
        whole = self.together(self.members)
        parts = max(math.ceil(whole.seconds / bound), math.ceil(len(self.members) / self.most))
        if parts == 1:
            return self._worthwhile(whole)
        passing = whole.seconds - sum(member.evaluations for member in self.members)
        each = passing / sum(member.sequences for member in self.members)  # of a sequence
        pieces: list[list[_Member]] = [[]]
        filled, left = 0.0, whole.seconds
        for member in self.members:
            seconds = member.evaluations + each * member.sequences
            full = filled + seconds / 2 > left / max(1, parts - len(pieces) + 1)
            if pieces[-1] and (full or len(pieces[-1]) == self.most):
                pieces.append([])
                filled, left = 0.0, left - filled
            pieces[-1].append(member)
            filled += seconds
        return [stack for piece in pieces for stack in self._worthwhile(self.together(piece))]

    def together(self, members: Sequence[_Member]) -> _Stack:
        """A run's micro-batch is made for the number of runs that are left when it ends: as runs leave, passes hold
        more of each of the others."""
        ordered = sorted(members, key=lambda member: -member.sequences)
        if self.keep_micro or len(members) == 1:
            micros = [member.run.execution.micro_batch for member in ordered]
        else:
            micros = [largest_divisor(m.batch, self.room // count) for count, m in enumerate(ordered, 1)]
        if len(members) == 1:
            return _Stack(ordered, micros, members[0].alone)
        most = [micro or member.batch for micro, member in zip(micros, ordered, strict=True)]
        found = phases(tuple((m.sequences, m.batch, micro) for m, micro in zip(ordered, most, strict=True)))
        n_ctx = members[0].run.spec.model.n_ctx
        seconds = sum(phase.seconds(self.costs, n_ctx) for phase in found)
        return _Stack(ordered, micros, seconds + sum(member.evaluations for member in members))

    def _worthwhile(self, stack: _Stack) -> list[_Stack]:
        one_by_one = sum(member.alone for member in stack.members)
        if len(stack.members) == 1 or stack.seconds <= (1 - LEAST_GAIN) * one_by_one:
            return [stack]
        return [self.together([member]) for member in stack.members]


def _families(runs: list[PlannedRun], target: Machine, keep_micro: bool) -> list[_Family]:
    """Runs that are alike, parted where they would hold each other up."""
    model = runs[0].spec.model
    costs = pass_costs(runs[0], target)
    half = target.memory / 2  # one for the runs' states, one for a pass
    kept = activation_bytes(model, attention=target.device == "cpu")
    room = max(1, int(min(PASS_TOKENS[target.device], half / kept) / model.n_ctx))
    passing = runs[0].execution.micro_batch or 1 if keep_micro else 1
    most = max(1, min(room // passing, int(half / RUN_BYTES / count_params(model).total)))
    by_batch: dict[int, list[_Member]] = {}
    for run in runs:
        spec = run.spec
        [phase] = stack_phases([run])
        sequences, evaluations = spec.batch_sequences * spec.steps, evaluation_seconds(run, target, costs)
        alone = phase.seconds(costs, model.n_ctx) + evaluations
        member = _Member(run, sequences, spec.batch_sequences, evaluations, alone)
        by_batch.setdefault(member.batch, []).append(member)

    found: list[_Family] = []
    for _, members in sorted(by_batch.items()):
        members.sort(key=lambda member: member.sequences)
        apart = _Family(members, costs, room, most, keep_micro)
        joined = [dataclasses.replace(family, members=family.members + members) for family in found]
        saved = [family.seconds + apart.seconds - both.seconds for family, both in zip(found, joined, strict=True)]
        if saved and max(saved) > 0:
            i = saved.index(max(saved))
            found[i] = joined[i]
        else:
            found.append(apart)
    return found


def _assigned(runs: Sequence[PlannedRun], found: Iterable[_Stack]) -> list[PlannedRun]:
    """`runs` with the numbers of their stacks, in the order of their first runs, and their micro-batches."""
    place: dict[str, tuple[_Stack, int | None]] = {}
    for stack in found:
        if len(stack.members) > 1:
            place |= {m.run.run_id: (stack, micro) for m, micro in zip(stack.members, stack.micros, strict=True)}
    numbers: dict[int, int] = {}
    out = []
    for run in runs:
        if run.run_id in place:
            stack, micro = place[run.run_id]
            number = numbers.setdefault(id(stack), len(numbers))
            run = dataclasses.replace(run, stack=number, execution=_with_micro(run.execution, micro))
        out.append(run)
    return out
