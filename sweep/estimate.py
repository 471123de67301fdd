"""How long a run will take: from a cached measurement of its shape on this machine, else from a stated assumption."""

from __future__ import annotations

import json
import math
import os
from functools import lru_cache
from pathlib import Path

from sweep.accounting import count_flops
from sweep.cache import cache_dir
from sweep.spec import PlannedRun, RunSpec

# Small models on a CPU are bound by the calls, not by arithmetic, hence a time a step and layer besides the rate.
RATE = {"cpu": 30e9, "cuda": 50e12}  # FLOP/s of one thread, of one GPU
OVERHEAD = {"cpu": 1.5e-3, "cuda": 1.5e-3}  # seconds a micro-batch and layer
ASSUMPTION = (
    "assumed: 30 GFLOP/s a CPU thread or 50 TFLOP/s a GPU, and 1.5 ms a micro-batch and layer; "
    "`isoloss plan --measure` replaces this by a measurement"
)
CUDA_MICRO_TOKENS = 65536  # assumed of a GPU, where the trainer takes what fits


def plan_device(device: str) -> str:
    """ "cpu" or "cuda" for the launcher's device, without importing torch: "auto" is a GPU where a driver is loaded."""
    if device != "auto":
        return device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def estimate_seconds(planned: PlannedRun, device: str) -> tuple[float, bool]:
    """Seconds of training and evaluation on one worker, and whether they rest on a measurement."""
    spec = planned.spec
    micro = planned.execution.micro_batch or max(1, CUDA_MICRO_TOKENS // spec.model.n_ctx)
    micro = min(micro, spec.batch_sequences)
    passes = math.ceil(spec.batch_sequences / micro)
    measured = read_measurements().get(measurement_key(spec, micro, planned.execution.threads, device))
    per_pass = measured if measured is not None else _assumed_pass(spec, micro, device, planned.execution.threads)
    forward = evaluations(spec, planned) * spec.data.test_tokens / (micro * spec.model.n_ctx) / 3
    return per_pass * (spec.steps * passes + forward), measured is not None


def evaluations(spec: RunSpec, planned: PlannedRun) -> float:
    """About how often a run is evaluated."""
    execution = planned.execution
    return execution.eval_points_per_decade * math.log10(spec.steps + 1) + execution.eval_tail + 1


def measurement_key(spec: RunSpec, micro: int, threads: int, device: str) -> str:
    """What a measurement depends on: shape, micro-batch, precision, device and threads."""
    m = spec.model
    shape = f"{m.family}-{m.n_layer}x{m.d_model}-h{m.n_head}x{m.d_head}-f{m.d_ff}-c{m.n_ctx}-v{m.vocab_size}"
    where = f"cpu{threads}" if device == "cpu" else device
    return f"{shape}|{micro}|{spec.precision}|{spec.optimizer.name}|{where}"


def measurements_file() -> Path:
    """JSON file of measurements in the user's cache: {key: seconds of one micro-batch, forward and backward}."""
    return cache_dir() / "measurements.json"


def read_measurements() -> dict[str, float]:
    """Cached measurements; none where the file is missing or damaged (it is only a cache)."""
    path = measurements_file()
    try:
        return _parse(path.read_text())
    except (OSError, ValueError):
        return {}


def write_measurements(values: dict[str, float]) -> Path:
    """Add measurements to the cache, atomically."""
    path = measurements_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps({**read_measurements(), **values}, indent=1, sort_keys=True))
    partial.replace(path)
    return path


@lru_cache(maxsize=4)
def _parse(text: str) -> dict[str, float]:
    return {str(key): float(value) for key, value in json.loads(text).items()}


def _assumed_pass(spec: RunSpec, micro: int, device: str, threads: int) -> float:
    rate = RATE[device] * (threads if device == "cpu" else 1)
    return OVERHEAD[device] * spec.model.n_layer + count_flops(spec.model).total * micro * spec.model.n_ctx / rate
