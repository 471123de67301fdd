"""Locks on directories: one launcher a sweep, one trainer a run.

The kernel drops an flock when its holder dies, however it dies, so no stale lock is ever left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sweep.schema import InputError

LOCK_FILE = "lock"


@contextlib.contextmanager
def hold(directory: Path, what: str, wait_seconds: float = 0.5) -> Iterator[None]:
    """Hold the lock of `directory` (made if absent) for the length of the block.

    Raises InputError, naming the holder, where another process still holds it after `wait_seconds` (never quite zero,
    since `is_held` takes the lock for a moment).
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(
                    f"{what} {directory} is in use by {holder}; wait for it to end (isoloss status shows how far it is)"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(directory: Path) -> bool:
    """Whether a living process holds the lock of `directory`."""
    try:
        with (directory / LOCK_FILE).open("r") as file:
            return not _try_lock(file.fileno())
    except OSError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
