"""Measure how fast this machine trains the stacks of a plan (`isoloss plan --measure`). Imports torch when called."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.estimate import (
    longest_phase,
    measurement_key,
    pass_costs,
    stack_phases,
    this_machine,
    write_measurements,
)
from sweep.phases import Phase
from sweep.spec import PlannedRun
from sweep.stacking import stacks

if TYPE_CHECKING:
    from sweep.corpus import Corpus

PASSES = 4  # of a timed block, and of the longest batch; the first block is not timed: allocation, first calls
TIMED_SECONDS = 0.5  # at least; the fastest block counts, so that other work on the machine weighs little
LONGEST_PASS = 10.0  # seconds by assumption; slower shapes are left to the assumption


def measure(runs: Iterable[PlannedRun], device: str, report: Callable[[str], None] | None = None) -> dict[str, float]:
    """Train each distinct stack of `runs`, or run by itself, for about a second on random tokens, with as many runs and
    sequences as for most of its time, and cache that.

    `device` is "cpu" or a CUDA device. Returns seconds of one forward and backward pass by `measurement_key`; shapes
    too slow to try here or too large for the memory are left out. `report` gets a line for each.
    """
    kind = device.partition(":")[0]
    here = this_machine(kind)
    todo: dict[str, tuple[list[PlannedRun], Phase, float]] = {}
    for members in stacks(runs):
        n_ctx = members[0].spec.model.n_ctx
        costs = pass_costs(members[0], here)
        phase = longest_phase(stack_phases(members), costs, n_ctx)
        expected = phase.seconds(costs, n_ctx) / phase.passes
        todo.setdefault(measurement_key(members[0], phase, kind), (members, phase, expected))
    measured: dict[str, float] = {}
    for key, (members, phase, expected) in todo.items():
        seconds = _time_pass(_alive(members, phase), phase.micro, device) if expected <= LONGEST_PASS else None
        if seconds is not None:
            measured[key] = seconds
        if report is not None:
            found = f"{seconds * 1e3:.2f} ms" if seconds is not None else "not measured, too large for here"
            report(f"{key}: {found} a pass (assumed {expected * 1e3:.2f} ms)")
    write_measurements(measured)
    return measured


def _alive(members: list[PlannedRun], phase: Phase) -> list[PlannedRun]:
    """The members of a stack that are trained in `phase`, with batches of a few of its passes at most, so that updates
    come about as often as they will."""
    longest = sorted(members, key=lambda run: run.spec.steps * run.spec.batch_sequences)[-phase.runs :]
    alive = []
    for run in longest:
        passes = max(1, min(PASSES, run.spec.batch_sequences // phase.micro))
        spec = dataclasses.replace(run.spec, batch_tokens=passes * phase.micro * run.spec.model.n_ctx)
        execution = dataclasses.replace(run.execution, micro_batch=phase.micro)
        alive.append(dataclasses.replace(run, spec=spec, execution=execution))
    return alive


def _time_pass(runs: list[PlannedRun], micro: int, device: str) -> float | None:
    """Seconds of a pass over `micro` sequences of each of the runs; None where the memory does not suffice."""
    from sweep.device import numerics
    from sweep.stack import Stack

    block = PASSES * micro
    try:
        with numerics(runs[0].spec.precision, runs[0].execution, device):
            stack = Stack(runs, _random_corpus(runs[0], 2 * block), device)
            stack.advance(block, lambda: False)
            # advance reads the losses back at its end, so the clock sees finished work
            blocks: list[float] = []
            while sum(blocks) < TIMED_SECONDS:
                started = time.perf_counter()
                stack.advance(stack.seen + block, lambda: False)
                blocks.append(time.perf_counter() - started)
            return min(blocks) / PASSES
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            return None
        raise


def _random_corpus(planned: PlannedRun, sequences: int) -> Corpus:
    """Tokens to time on: speed does not depend on what they say."""
    import numpy as np

    from sweep.corpus import Corpus

    model, data = planned.spec.model, planned.spec.data
    generator = np.random.default_rng(0)
    train, test = (
        generator.integers(0, model.vocab_size, size, dtype=np.uint32)
        for size in (sequences * model.n_ctx + 1, data.test_tokens + 1)
    )
    return Corpus(Path(), train, test, "", model.vocab_size, 1.0, {})
