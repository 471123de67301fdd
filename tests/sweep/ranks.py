"""Several real processes on gloo that run one function together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from sweep.world import join

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sweep.train", "sweep.sharded"])  # seconds of imports, once for all tests


def run_ranks(size: int, function: Callable[..., Any], *args: Any, device: str = "cpu") -> list[Any]:
    """What `function(world, *args)` returns on each of `size` ranks. An exception there fails here; a rank that was
    killed has None."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    pipes = [_context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _context.Process(target=_rank, args=(rank, size, port, pipe, function, args))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process, (_, pipe) in zip(processes, pipes, strict=True):
        process.start()
        pipe.close()
    results: list[Any] = []
    for process, (pipe, _) in zip(processes, pipes, strict=True):
        try:
            results.append(pipe.recv() if pipe.poll(120) else RuntimeError("no answer in two minutes"))
        except EOFError:
            results.append(None)
        process.join(10)
        if process.is_alive():
            process.kill()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _rank(rank: int, size: int, port: int, pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    try:
        with join() as world:
            pipe.send(function(world, *args))
    except BaseException:
        pipe.send(RuntimeError(f"rank {rank}: {traceback.format_exc()}"))
