"""Who holds a lease: a process, and whether it still lives where that can be seen."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

Claim = tuple[int, int]  # number of a submission and of its restart by the scheduler; a later one supersedes


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says. `space` is where `pid` and `start` mean something: one boot, one pid
    namespace."""

    pid: int
    start: str  # of the process, in clock ticks since the boot
    space: str
    host: str
    claim: Claim | None = None

    @classmethod
    def this_process(cls, claim: Claim | None = None) -> Self:
        """The holder that this process is."""
        return cls(os.getpid(), _start(os.getpid()) or "", _space(), socket.gethostname(), claim)

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The holder that `text`, the JSON of its fields, speaks of; None where it is unreadable or not whole yet."""
        try:
            values: dict[str, Any] = json.loads(text)
            claim = values.pop("claim", None)
            return cls(**values, claim=None if claim is None else (int(claim[0]), int(claim[1])))
        except (ValueError, TypeError, AttributeError, LookupError):
            return None

    def alive(self) -> bool | None:
        """Whether its process lives; None where it cannot be seen from here."""
        if self.space != _space():
            return None
        start = _start(self.pid)
        return None if start is None and _hidden(self.pid) else start == self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@lru_cache(maxsize=1)
def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no /proc: nobody's process can be seen
        return f"{socket.gethostname()} {os.getpid()}"


def _start(pid: int) -> str | None:
    """When process `pid` started, in clock ticks since the boot; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _hidden(pid: int) -> bool:
    """Whether process `pid`, of which /proc tells nothing, is another user's that it does not show."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        pass
    return False
