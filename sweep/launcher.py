"""Who runs a sweep and with what: the typed forms of the group `launcher`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sweep.schema import InputError


@dataclass(frozen=True)
class LauncherConfig:
    """Group `launcher`: what every launcher has."""

    threads: int
    device: Literal["auto", "cpu", "cuda"]
    retries: int
    stop_after: int
    # on where submissions of earlier versions are read, which have no stacks anyway
    stack: Literal["on", "off"] = field(default="on", kw_only=True)

    def __post_init__(self) -> None:
        if self.threads < 1 or self.retries < 0 or self.stop_after < 1:
            raise InputError(
                "launcher.threads and launcher.stop_after must be positive and launcher.retries not negative"
            )


@dataclass(frozen=True)
class LocalLauncher(LauncherConfig):
    """Worker processes on this machine."""

    name: Literal["local"]
    workers: int | Literal["auto"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers != "auto" and self.workers < 1:
            raise InputError(f"launcher.workers must be auto or positive, not {self.workers}")


@dataclass(frozen=True)
class SlurmLauncher(LauncherConfig):
    """Job arrays of a SLURM cluster. None: the cluster's or the plan's own value."""

    name: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    gpus_per_run: int
    nodes: int
    ranks: int | None
    cpus_per_rank: int | None
    memory_gb: float | None
    gpu_type: str
    flops_per_s: float | None
    time_limit_minutes: int | None
    max_minutes: int
    time_margin: float
    pack_minutes: float
    parallel: int
    signal_seconds: int
    python: str | None
    setup: tuple[str, ...]
    srun_args: tuple[str, ...]
    sbatch: dict[str, Any] | None
    wait: bool
    allow_dirty: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nodes", "max_minutes", "time_margin", "pack_minutes", "parallel", "signal_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"launcher.{name} must be positive, not {getattr(self, name)}")
        for name in ("ranks", "cpus_per_rank", "memory_gb", "flops_per_s", "time_limit_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"launcher.{name} must be null or positive, not {value}")
        if self.gpus_per_run < 0:
            raise InputError(f"launcher.gpus_per_run must not be negative, but is {self.gpus_per_run}")
        for name, count in (("gpus_per_run", self.gpus_per_run), ("ranks", self.ranks or 0)):
            if count % self.nodes:
                raise InputError(f"launcher.{name} {count} does not divide over launcher.nodes {self.nodes}")

    @property
    def ranks_per_run(self) -> int:
        """Processes of one run: one a GPU unless said otherwise."""
        return self.ranks or self.gpus_per_run or self.nodes
