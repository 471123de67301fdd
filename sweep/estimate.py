"""How long a run will take: from a cached measurement of its shape on this machine, else from a stated assumption."""

from __future__ import annotations

import contextlib
import json
import math
import os
from functools import lru_cache
from pathlib import Path

from sweep.accounting import count_flops
from sweep.cache import cache_dir
from sweep.spec import PlannedRun

# Small models on a CPU are bound by calls and memory, not by arithmetic, hence times a pass and a token too.
RATE = {"cpu": 50e9, "cuda": 50e12}  # FLOP/s of one thread, of one GPU
PER_PASS = {"cpu": 0.5e-3, "cuda": 1.5e-3}  # seconds a layer
PER_TOKEN = {"cpu": 1.3e-6, "cuda": 0.0}  # seconds a layer
ASSUMPTION = (
    "assumed: 50 GFLOP/s a CPU thread and, for every layer, 0.5 ms a pass and 1.3 us a token, or 50 TFLOP/s a GPU and "
    "1.5 ms a pass and layer; isoloss plan --measure measures"
)
CUDA_MICRO_TOKENS = 65536  # assumed of a GPU, where the trainer takes what fits
CURVE_DECADES = 2.5  # of tokens that the evaluations span


def plan_device(device: str) -> str:
    """ "cpu" or "cuda" for the launcher's device, without importing torch: "auto" is a GPU where a driver is loaded."""
    if device != "auto":
        return device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip() in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def plan_workers(device: str, threads: int) -> int:
    """Runs at a time where nobody says how many, without importing torch: one per `threads` cores, or one per GPU."""
    if plan_device(device) == "cpu":
        return max(1, available_cores() // threads)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def available_cores() -> int:
    """Cores this process may use: the machine's, less by affinity and by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def estimate_seconds(planned: PlannedRun, device: str, measurements: dict[str, float]) -> tuple[float, bool]:
    """Seconds of training and evaluation on one worker, and whether they rest on one of the `measurements`."""
    spec = planned.spec
    micro, per_step = passes(planned)
    measured = measurements.get(measurement_key(planned, device)) if measurements else None
    seconds = assumed_pass(planned, device) if measured is None else measured
    # an evaluation runs forward only, a third of a pass
    evaluated = evaluations(planned) * spec.data.test_tokens / (micro * spec.model.n_ctx) / 3
    return seconds * (spec.steps * per_step + evaluated), measured is not None


def passes(planned: PlannedRun) -> tuple[int, int]:
    """Sequences of one forward and backward pass, and passes an update."""
    sequences = planned.spec.batch_sequences
    micro = planned.execution.micro_batch or max(1, CUDA_MICRO_TOKENS // planned.spec.model.n_ctx)
    micro = min(micro, sequences)
    return micro, math.ceil(sequences / micro)


def evaluations(planned: PlannedRun) -> float:
    """About how often a run is evaluated."""
    execution = planned.execution
    return (
        execution.eval_points_per_decade * min(CURVE_DECADES, math.log10(planned.spec.steps)) + execution.eval_tail + 1
    )


def assumed_pass(planned: PlannedRun, device: str) -> float:
    """Seconds of one forward and backward pass by the stated assumption."""
    model = planned.spec.model
    rate = RATE[device] * (planned.execution.threads if device == "cpu" else 1)
    tokens = passes(planned)[0] * model.n_ctx
    calls = model.n_layer * (PER_PASS[device] + tokens * PER_TOKEN[device])
    return calls + count_flops(model).total * tokens / rate


def measurement_key(planned: PlannedRun, device: str) -> str:
    """What a measurement depends on: shape, micro-batch, precision, optimiser, compilation, device and threads."""
    m, spec, execution = planned.spec.model, planned.spec, planned.execution
    shape = f"{m.family}-{m.n_layer}x{m.d_model}-h{m.n_head}x{m.d_head}-f{m.d_ff}-c{m.n_ctx}-v{m.vocab_size}"
    where = f"cpu{execution.threads}" if device == "cpu" else device
    compiled = "-compiled" if execution.compile else ""
    return f"{shape}|{passes(planned)[0]}|{spec.precision}|{spec.optimizer.name}{compiled}|{where}"


def measurements_file() -> Path:
    """JSON file of measurements in the user's cache: {key: seconds of one forward and backward pass}."""
    return cache_dir() / "measurements.json"


def read_measurements() -> dict[str, float]:
    """Cached measurements; none where the file is missing or damaged (it is only a cache)."""
    try:
        return _parse(measurements_file().read_text())
    except (OSError, ValueError, AttributeError, TypeError):
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
