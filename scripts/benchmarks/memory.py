"""Memory of processes, from /proc."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory(every: float = 0.2) -> Iterator[list[float | None]]:
    """A list whose one number is, at the end, the most that this process's descendants held at once, in GiB; None where
    there is no /proc. Looks `every` so many seconds."""
    peak: list[float | None] = [None]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            if (held := resident()) is not None:
                peak[0] = max(peak[0] or 0.0, held / 2**30)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def resident() -> int | None:
    """Bytes that the descendants of this process hold in memory, pages that they share counted in each."""
    parents, held = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(stat.parent.name)], held[int(stat.parent.name)] = int(fields[1]), int(fields[21])
    if not parents:
        return None
    found: set[int] = set()
    new = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found |= new
    return sum(held[pid] for pid in found) * os.sysconf("SC_PAGE_SIZE")
