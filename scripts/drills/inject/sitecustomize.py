"""Faults that only the inside of a process can have. Python imports this file at its start where its folder is in
PYTHONPATH; the drills put it there for the processes that they break.

DRILL_CLOCK=FILE      the clocks are ahead by the seconds that FILE holds, as soon as it exists: "wall steady"
DRILL_NO_LOCKS=FOLDER locks of files below FOLDER fail as on a file system without them, each noted in FOLDER.locks
DRILL_MEMORY=BYTES    of address space for each process
"""

import errno
import fcntl
import os
import resource
import time
from collections.abc import Callable
from typing import Any


def _jumping_clocks(path: str) -> None:
    real = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}

    def jumped(name: str, which: int) -> Callable[[], float]:
        def now() -> float:
            try:
                with open(path) as file:
                    return real[name]() + float(file.read().split()[which])
            except (OSError, IndexError, ValueError):
                return real[name]()

        return now

    for name, which in (("time", 0), ("monotonic", 1), ("perf_counter", 1)):
        setattr(time, name, jumped(name, which))


def _no_locks(folder: str) -> None:
    def refusing(lock: Callable[..., None]) -> Callable[..., None]:
        def call(file: Any, *arguments: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.startswith(folder):
                with open(f"{folder}.locks", "a") as note:
                    note.write(f"{lock.__name__} {path}\n")
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            lock(file, *arguments)

        return call

    for lock in (fcntl.flock, fcntl.lockf):
        setattr(fcntl, lock.__name__, refusing(lock))


if "DRILL_CLOCK" in os.environ:
    _jumping_clocks(os.environ["DRILL_CLOCK"])
if "DRILL_NO_LOCKS" in os.environ:
    _no_locks(os.environ["DRILL_NO_LOCKS"])
if "DRILL_MEMORY" in os.environ:
    resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["DRILL_MEMORY"]),) * 2)
