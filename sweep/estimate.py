"""How long a run will take: from a cached measurement of its shape on this machine, else from a stated assumption.

The machine may be another than this one: runs planned on a login node are trained on a cluster's nodes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sweep.accounting import count_flops
from sweep.cache import cache_dir
from sweep.ladder import activation_bytes
from sweep.launcher import LocalLauncher, SlurmLauncher
from sweep.phases import PassCosts, Phase, phases
from sweep.schema import InputError
from sweep.spec import PlannedRun

# Dense peak FLOP/s by precision; NVIDIA's data sheets of the SXM forms. A V100 has no bfloat16 or TF32 units. Where
# the kind of GPU is not known, an A100 stands for it: most others of its time and later are between it and an H100.
PEAK = {
    "v100": {"bf16": 15.7e12, "tf32": 15.7e12, "fp32": 15.7e12},
    "a100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "h100": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "h200": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
}
BANDWIDTH = {"v100": 0.9e12, "a100": 1.555e12, "h100": 3.35e12, "h200": 4.8e12}  # bytes a second, as above
NAMED = tuple(PEAK)
PEAK["gpu"], BANDWIDTH["gpu"] = PEAK["a100"], BANDWIDTH["a100"]
# Bytes that a worker may use: little on a host, with a worker a core; of a GPU half of what its smaller forms have.
MEMORY = {"cpu": 2**29, "v100": 8e9, "a100": 20e9, "h100": 40e9, "h200": 70e9, "gpu": 20e9}
# Of the peak. Plain torch without fused kernels reaches 0.3 to 0.5 on matrices of 1,000 and more; less is the safe side
# of a time limit.
USEFUL = 0.3
CPU_RATE = 50e9  # FLOP/s of one thread
# Small models are bound by calls and memory, not by arithmetic, hence times a pass and a token too.
PER_PASS = {"cpu": 0.6e-3, "cuda": 1.5e-3}  # seconds a layer
PER_TOKEN = {"cpu": 0.5e-6, "cuda": 0.0}  # seconds a layer
TOGETHER = {"cpu": 1.08, "cuda": 1.0}  # how much dearer a token is among several runs: 1.03 at d_model 16, 1.1 at 48
# How often a GPU moves what a pass keeps, which takes it longer than the arithmetic of narrow models: written, read,
# read again for the gradients, which are written and read; at two thirds of the data sheet's rate.
MOVES = 5 * 1.5
EVALUATION_TOKENS = {"cpu": 2048, "cuda": 65536}  # of a run in one call, about as sweep.evaluate has it
CUDA_MICRO_TOKENS = 65536  # assumed of a GPU, where the trainer takes what fits
CURVE_DECADES = 2.5  # of tokens that the evaluations span


@dataclass(frozen=True)
class Machine:
    """What runs are planned for: the device that a launcher will train them on."""

    device: str  # cpu or cuda
    kind: str  # cpu, or a row of PEAK
    ranks: int = 1  # processes that share a run
    flops_per_s: float | None = None  # of one GPU or CPU thread, instead of the assumed
    here: bool = True  # this one, so that measurements count

    @property
    def memory(self) -> float:
        """Bytes that a worker may use."""
        return MEMORY[self.kind]

    def flops_per_second(self, precision: str, threads: int) -> float:
        """Useful FLOP/s of one rank with `threads` CPU threads."""
        if self.device == "cpu":
            return (self.flops_per_s or CPU_RATE) * threads
        return self.flops_per_s or USEFUL * PEAK[self.kind][precision]

    def assumption(self, precisions: set[str]) -> str:
        """One line: what an estimate in these precisions rests on where nothing was measured."""
        given = "given" if self.flops_per_s else "assumed"
        if self.device == "cpu":
            rate = f"{self.flops_per_second('', 1) / 1e9:.3g} GFLOP/s a CPU thread"
            calls = f"{PER_PASS['cpu'] * 1e3:.3g} ms a pass and {PER_TOKEN['cpu'] * 1e6:.3g} us a token"
        else:
            each = [f"{self.flops_per_second(name, 1) / 1e12:.3g} TFLOP/s in {name}" for name in sorted(precisions)]
            rate, calls = f"{', '.join(each)} a GPU ({self.kind})", f"{PER_PASS['cuda'] * 1e3:.3g} ms a pass"
            if not self.flops_per_s:
                rate += f", {1 / MOVES * BANDWIDTH[self.kind] / 1e9:.3g} GB/s of a pass's activations"
        shared = f", over {self.ranks} ranks a run" if self.ranks > 1 else ""
        better = "isoloss plan --measure measures" if self.here else "launcher.flops_per_s sets it"
        return f"{given}: {rate} and, for every layer, {calls}{shared}; {better}"


LOCAL_CPU = Machine("cpu", "cpu")
DRIVER = Path("/proc/driver/nvidia/gpus")  # where NVIDIA's driver says what it has


def machine(launcher: LocalLauncher | SlurmLauncher) -> Machine:
    """The machine that `launcher` trains on. Raises InputError where its kind of GPU is not known."""
    if isinstance(launcher, LocalLauncher):
        device = plan_device(launcher.device)
        return this_machine(device)
    device = launcher.device if launcher.device != "auto" else "cuda" if launcher.gpus_per_run else "cpu"
    if device == "cuda" and not launcher.gpus_per_run:
        raise InputError("launcher.device=cuda needs launcher.gpus_per_run of at least 1")
    if device == "cuda" and launcher.gpu_type not in PEAK:
        raise InputError(
            f"launcher.gpu_type {launcher.gpu_type!r} is none of {', '.join(PEAK)}; take gpu and set "
            "launcher.flops_per_s"
        )
    kind = "cpu" if device == "cpu" else launcher.gpu_type
    return Machine(device, kind, launcher.ranks_per_run, launcher.flops_per_s, here=False)


def this_machine(device: str) -> Machine:
    """This one, with its CPUs or a GPU, whose kind the driver tells where it is loaded."""
    if device == "cpu":
        return LOCAL_CPU
    said = ""
    with contextlib.suppress(OSError):
        for path in sorted(DRIVER.glob("*/information"))[:1]:
            said = path.read_text().partition("Model:")[2].partition("\n")[0].lower()
    return Machine(device, next((name for name in NAMED if re.search(rf"\b{name}\b", said)), "gpu"))


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


def launch_workers(launcher: LocalLauncher | SlurmLauncher) -> int:
    """Runs, or stacks of runs, that `launcher` trains at a time."""
    if isinstance(launcher, SlurmLauncher):
        return launcher.parallel
    return plan_workers(launcher.device, launcher.threads) if launcher.workers == "auto" else launcher.workers


def available_cores() -> int:
    """Cores this process may use: the machine's, less by affinity and by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def estimate_seconds(
    members: Sequence[PlannedRun], machine: Machine, measurements: dict[str, float]
) -> tuple[list[float], bool]:
    """Seconds of training and evaluation of runs that `machine` trains as one stack, or of one: each run's share, in
    order, which add up to the whole; and whether they rest on one of the `measurements`."""
    costs = pass_costs(members[0], machine)
    n_ctx = members[0].spec.model.n_ctx
    found = stack_phases(members, machine.ranks)
    factor, measured = 1.0, None
    if measurements and machine.here:
        longest = longest_phase(found, costs, n_ctx)
        measured = measurements.get(measurement_key(members[0], longest, machine.device))
        if measured is not None:
            factor = measured * longest.passes / longest.seconds(costs, n_ctx)
    shares, spent = [0.0] * len(members), 0.0
    for phase in found:
        spent += factor * phase.seconds(costs, n_ctx) / phase.runs
        for i in phase.leaving:
            shares[i] = spent + factor * evaluation_seconds(members[i], machine, costs)
    return shares, measured is not None


def stack_phases(members: Sequence[PlannedRun], ranks: int = 1) -> list[Phase]:
    """The phases of runs that are trained as one stack, or of one run, on each of `ranks` processes."""
    found = []
    for run in members:
        sequences = math.ceil(run.spec.batch_sequences / ranks)
        micro = run.execution.micro_batch or max(1, CUDA_MICRO_TOKENS // run.spec.model.n_ctx)
        found.append((run.spec.steps * sequences, sequences, micro))
    return phases(tuple(found))


def longest_phase(found: Sequence[Phase], costs: PassCosts, n_ctx: int) -> Phase:
    """The phase that takes the most time, the first of equals."""
    return max(found, key=lambda phase: phase.seconds(costs, n_ctx))


def evaluations(planned: PlannedRun) -> float:
    """About how often a run is evaluated."""
    execution = planned.execution
    return (
        execution.eval_points_per_decade * min(CURVE_DECADES, math.log10(planned.spec.steps)) + execution.eval_tail + 1
    )


def evaluation_seconds(planned: PlannedRun, machine: Machine, costs: PassCosts) -> float:
    """Of all evaluations of a run, which go forward only, a third of a pass."""
    tokens = evaluations(planned) * planned.spec.data.test_tokens / machine.ranks
    return tokens * (costs.token + costs.calls / EVALUATION_TOKENS[machine.device]) / 3


def pass_costs(planned: PlannedRun, machine: Machine) -> PassCosts:
    """Of one rank, by the stated assumption."""
    model = planned.spec.model
    rate = machine.flops_per_second(planned.spec.precision, planned.execution.threads)
    calls = model.n_layer * PER_PASS[machine.device]
    token = model.n_layer * PER_TOKEN[machine.device] + count_flops(model).total / rate
    if machine.device == "cuda" and not machine.flops_per_s:
        kept = activation_bytes(model, attention=False) * (0.5 if planned.spec.precision == "bf16" else 1)
        token = max(token, MOVES * kept / BANDWIDTH[machine.kind])
    return PassCosts(calls, token, TOGETHER[machine.device])


def measurement_key(planned: PlannedRun, phase: Phase, device: str) -> str:
    """What a measurement depends on: shape, runs and micro-batch, precision, optimiser, compilation, device and
    threads."""
    m, spec, execution = planned.spec.model, planned.spec, planned.execution
    shape = f"{m.family}-{m.n_layer}x{m.d_model}-h{m.n_head}x{m.d_head}-f{m.d_ff}-c{m.n_ctx}-v{m.vocab_size}"
    where = f"cpu{execution.threads}" if device == "cpu" else device
    compiled = "-compiled" if execution.compile else ""
    size = f"{phase.runs}x{phase.micro}"
    return f"{shape}|{size}|{spec.precision}|{spec.optimizer.name}{compiled}|{where}"


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
