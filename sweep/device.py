"""The device a run computes on: its arithmetic settings, its description, its peak."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from sweep.cache import cache_dir
from sweep.estimate import NAMED, PEAK
from sweep.schema import InputError
from sweep.spec import Execution

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def peak_flops(device_name: str, precision: str) -> float | None:
    """Matrix FLOP/s that the device reaches at most, or None where no data sheet is known (every CPU)."""
    return next((PEAK[kind][precision] for kind in NAMED if kind.upper() in device_name), None)


def device_name(device: str) -> str:
    """Name of the processor or of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """bfloat16 autocast for precision bf16, else nothing. May be entered many times."""
    if precision == "bf16":  # without its cache: a pass uses each weight once, and a CUDA graph must not reuse casts
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def driver(device: str) -> str | None:
    """CUDA version that torch was built for and the device's compute capability, or None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    return f"CUDA {torch.version.cuda}, capability {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"


@contextmanager
def numerics(precision: str, execution: Execution, device: str) -> Iterator[None]:
    """Set threads, TF32 and determinism for one run, make recompilations errors, and put all back afterwards. Raises
    InputError where the device does not exist or lacks the precision."""
    cuda = torch.device(device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise InputError(f"device {device}: no CUDA device is available; set launcher.device to cpu or auto")
    if precision == "tf32" and not cuda:
        raise InputError("precision tf32 needs a CUDA device; set precision to fp32 or bf16")
    if not cuda:
        keep_memory()
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(execution.threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    strict: AbstractContextManager[object] = nullcontext()
    if execution.compile:
        _keep_compiled()
        torch.compiler.reset()  # the shapes of earlier runs count against dynamo's limit, beyond which it runs eagerly
        strict = torch._dynamo.config.patch(error_on_recompile=True)
    try:
        with strict:
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        if execution.deterministic:  # not otherwise: the call imports torch's compiler, which takes two seconds
            torch.use_deterministic_algorithms(deterministic)


def keep_memory() -> None:
    """Have this process keep the memory that it frees, where the C library is glibc. Otherwise every step gives its
    large arrays back to the system, and the next one waits for a page fault every 4 kB."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**25)  # bytes; glibc takes no more
    mallopt(_TRIM_THRESHOLD, 2**30)


def _keep_compiled() -> None:
    """Have torch.compile keep what it compiles where the other processes of a sweep and later ones find it, unless
    $TORCHINDUCTOR_CACHE_DIR says where. Torch's own default is a folder that restarts empty. One folder for each kind
    of processor: code for one may not run on another that shares the file system."""
    folder = cache_dir() / "compiled" / re.sub(r"[^A-Za-z0-9]+", "-", device_name("cpu"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # it is only a cache
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
