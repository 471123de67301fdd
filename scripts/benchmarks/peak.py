"""The matrix products that a device does in a second."""

from __future__ import annotations

import time

import torch

from benchmarks.baselines import synchronize

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}


def matrix_peak(device: str, precision: str, seconds: float = 0.15) -> dict[int, float]:
    """FLOP/s of square products by size, in bf16 or float32: the fastest of those within `seconds` a size."""
    found = {}
    for size in SIZES[torch.device(device).type]:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
        out = torch.empty_like(a)
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            synchronize(device)
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            synchronize(device)
            times.append(time.perf_counter() - began)
        found[size] = 2 * size**3 / min(times)
    return found
