"""Measure how fast this machine trains each shape of a plan (`isoloss plan --measure`). Imports torch when called."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.estimate import Machine, assumed_pass, measurement_key, passes, write_measurements
from sweep.spec import PlannedRun

if TYPE_CHECKING:
    from sweep.corpus import Corpus

STEPS = 3  # of a timed block; the first block is not timed: allocation and the first calls of each kernel
TIMED_SECONDS = 0.5  # at least; the fastest block counts, so that other work on the machine weighs little
LONGEST_PASS = 20.0  # seconds by assumption; slower shapes are left to the assumption


def measure(runs: Iterable[PlannedRun], device: str, report: Callable[[str], None] | None = None) -> dict[str, float]:
    """Train each distinct shape and micro-batch of `runs` for about a second on random tokens and cache the time.

    `device` is "cpu" or a CUDA device. Returns seconds of one forward and backward pass by `measurement_key`; shapes
    too slow to try here or too large for the memory are left out. `report` gets a line for each.
    """
    kind = device.partition(":")[0]
    here = Machine(kind, "cpu" if kind == "cpu" else "gpu")
    todo = {measurement_key(run, kind): run for run in runs}
    measured: dict[str, float] = {}
    for key, run in todo.items():
        micro, _ = passes(run)
        expected = assumed_pass(run, here)
        seconds = _time_pass(run, micro, device) if expected <= LONGEST_PASS else None
        if seconds is not None:
            measured[key] = seconds
        if report is not None:
            found = f"{seconds * 1e3:.2f} ms" if seconds is not None else "not measured, too large for here"
            report(f"{key}: {found} a pass (assumed {expected * 1e3:.2f} ms)")
    write_measurements(measured)
    return measured


def _time_pass(planned: PlannedRun, micro: int, device: str) -> float | None:
    """Seconds of one update on `micro` sequences; None where the memory does not suffice."""
    from sweep.device import numerics
    from sweep.run import Run

    # one micro-batch an update, so that a pass is what an update costs
    spec = dataclasses.replace(planned.spec, batch_tokens=micro * planned.spec.model.n_ctx)
    one_pass = dataclasses.replace(
        planned, spec=spec, execution=dataclasses.replace(planned.execution, micro_batch=None)
    )
    try:
        with numerics(spec.precision, planned.execution, device):
            run = Run(one_pass, _random_corpus(one_pass, (STEPS + 1) * micro), device)
            run.advance(STEPS, lambda: False)
            # advance reads the losses back at its end, so the clock sees finished work
            blocks: list[float] = []
            while sum(blocks) < TIMED_SECONDS:
                started = time.perf_counter()
                run.advance(run.step + STEPS, lambda: False)
                blocks.append(time.perf_counter() - started)
            return min(blocks) / STEPS
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
