"""Fixtures that several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.corpus import Corpus
from sweep.spec import DataSpec, Execution, ModelSpec, OptimizerSpec, PlannedRun, RunSpec, ScheduleSpec, Source


@pytest.fixture(scope="session")
def tiny_corpus() -> Corpus:
    """Real text, 120 kB to train on and 16 kB to test on, as bytes: source files of the json package and its like."""
    folder = Path(json.__file__).parents[1]
    text = b"".join((folder / name).read_bytes() for name in ("argparse.py", "ast.py", "inspect.py", "tarfile.py"))
    tokens = np.frombuffer(text, dtype=np.uint8)
    return Corpus(Path(), tokens[:120_000], tokens[-16_000:], "tiny", 256, 1.0, {})


@pytest.fixture(scope="session")
def plan_tiny() -> Callable[..., PlannedRun]:
    """A function that plans a run of a tiny model on `tiny_corpus`. Keywords of the model, the optimiser, the schedule,
    the run and its execution replace the defaults by name."""

    def plan(**changes: Any) -> PlannedRun:
        def take(**defaults: Any) -> dict[str, Any]:
            return {name: changes.pop(name, value) for name, value in defaults.items()}

        shape = take(family="gpt2", n_layer=2, d_model=16, n_head=2, d_head=8, d_ff=64, n_ctx=32, vocab_size=256)
        model = ModelSpec(**shape)
        data = DataSpec("text", "tiny", "bytes", 256, test_fraction=0.1, test_tokens=32 * 16)
        rates = take(name="adamw", lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0)
        execution = Execution(**{"checkpoint_seconds": 1e9, **changes.pop("execution", {})})
        steps, sequences = changes.pop("steps", 20), changes.pop("sequences", 8)
        schedule = ScheduleSpec(
            **{"name": "constant", "warmup_steps": 5, "schedule_steps": steps, **changes.pop("schedule", {})}
        )
        spec = RunSpec(model, data, sequences * model.n_ctx, steps, OptimizerSpec(**rates), schedule, **changes)
        return PlannedRun(spec, Source(), execution)

    return plan
