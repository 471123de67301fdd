"""The processes that train one run together: who they are, and the little they say to each other beside gradients.

Torch's process group carries it: gloo between CPUs, and NCCL between GPUs. One group serves all runs of a process.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sweep.schema import InputError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # of a rank that waits for others; one that died is noticed at once
PORTS = range(20_000, 32_000)  # below those that systems hand out themselves
# What gloo and NCCL say where the process at the other end of a connection is gone.
PEER_LOST = re.compile(r"(?i)(gloo|nccl|dist).*(connection (closed|reset) by peer|broken pipe|remote process exited)")

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Another rank has failed, and says so in the message; this one cannot go on without it."""


@dataclass
class World:
    """`size` processes of which this is number `rank`, and number `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    broken: bool = False  # a rank left the others in mid-step: they understand each other no more and have to end
    store: Any = field(default=None, repr=False)  # torch's key-value store that the ranks met in
    _shared: list[BaseException] = field(default_factory=list, repr=False)  # the last exception that all ranks raised

    def device(self, device: str) -> str:
        """The device of this rank where the run asks for `device`: its own of several GPUs. Sets torch's current one,
        which NCCL uses."""
        if self.size == 1 or not device.startswith("cuda"):
            return device
        import torch

        index = self.local_rank % max(1, torch.cuda.device_count())  # SLURM may show each task its own GPU only
        torch.cuda.set_device(index)
        return f"cuda:{index}"

    def share(self, count: int) -> slice:
        """This rank's part of `count` things: contiguous, as even as can be, empty where there are more ranks."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns on rank 0, the only one to call it; what it raises there is raised on all ranks."""
        if self.size == 1:
            return action()
        import torch
        import torch.distributed as dist

        outcome = [_outcome(action) if self.rank == 0 else None]
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        return self._value(outcome)[0]

    def each(self, action: Callable[[], T]) -> list[T]:
        """What `action` returns on each rank, in their order; what it raises on any is raised on all."""
        if self.size == 1:
            return [action()]
        import torch.distributed as dist

        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, _outcome(action))
        return self._value(outcomes)

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`; the others' is passed over."""
        return self.first(lambda: value)

    def most(self, *values: float) -> list[float]:
        """The largest of each of `values` over all ranks."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks, the same bits on each; returns it."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, an exception that not all ranks raise breaks the world, and becomes known to the others: where they
        fail for want of this rank they raise PeerFailed with its message."""
        try:
            yield
        except Exception as error:
            if self.size == 1 or any(e in self._shared for e in (error, error.__cause__)):
                raise
            self.broken = True
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            lost = PEER_LOST.search(said)
            text = "another rank has ended without a word: killed, or lost with its node" if lost else said[:1000]
            text = f"rank {self.rank}: {text}"
            try:
                cause = self.store.compare_set("failed", "", text).decode()
            except Exception:  # rank 0, which keeps the store, is gone
                if lost:
                    raise PeerFailed(text) from error
                raise error from None
            if (lost or cause != text) and not isinstance(error, InputError):
                raise PeerFailed(cause) from error
            raise

    def _value(self, outcomes: list[Any]) -> list[Any]:
        for _, error in outcomes:
            if error is not None:
                self._shared = [error]
                raise error
        return [value for value, _ in outcomes]


SINGLE = World()


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun or srun has started this process in, connected; SINGLE where neither has."""
    found = meeting_point(os.environ)
    if found is None:
        yield SINGLE
        return
    import torch
    import torch.distributed as dist

    world, url = found
    world.store, _, _ = next(iter(dist.rendezvous(url, world.rank, world.size, timeout=TIMEOUT)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=world.store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    try:
        yield world
    finally:
        if not world.broken:  # else NCCL might wait for the others; the end of the process tells them
            dist.destroy_process_group()


def meeting_point(environment: Mapping[str, str]) -> tuple[World, str] | None:
    """This process's world, not connected, and the address where its ranks meet; None for a process on its own.

    SLURM sets SLURM_NTASKS and SLURM_PROCID in batch scripts and shells too, but the size of a step only within srun.
    """
    get = environment.get
    if int(get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        world = World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(get("LOCAL_RANK", "0")))
        return world, f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    if int(get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        world = World(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
        host = get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        ids = (int(get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
        mixed = sum(number * prime for number, prime in zip(ids, (31, 7, 1), strict=True))  # neighbours never collide
        port = get("MASTER_PORT") or PORTS[mixed % len(PORTS)]
        return world, f"tcp://{host}:{port}"
    return None


def first_host(nodes: str) -> str:
    """The first name of a list of nodes in SLURM's notation: `rack[2-3]n[07,9],login` gives rack2n07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _outcome(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Value of `action` or, where it fails, its exception: one that can be sent."""
    try:
        return action(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
            return None, error
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
