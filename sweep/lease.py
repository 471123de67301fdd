"""The right to write a directory: one holder at a time, on any file system, with a number that fences off those before.

A holder is whoever created the file `lease.N` with the highest N. Creating a name is atomic on every file system, which
locks are not; the number only grows, so that a holder who was cut off and comes back finds a higher one than its own
and writes nothing more. Whether a silent holder still lives is judged without comparing clocks: by its process where it
can be seen, by the job scheduler where that started both, else by watching whether its file is still touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from sweep.schema import InputError

BEAT_SECONDS = 10.0  # between two touches of a holder's file
SILENT_SECONDS = 60.0  # after which a holder whose process cannot be seen counts as dead
STALE_SECONDS = 300.0  # age of a touch beyond which `is_held`, which cannot wait, calls its unseen holder dead

Claim = tuple[int, int]  # number of a submission and of its restart by the scheduler; a later one supersedes


class LeaseLost(Exception):
    """A later attempt has taken the directory over: nothing more may be written to it."""


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

    def alive(self) -> bool | None:
        """Whether its process lives; None where it cannot be seen from here."""
        return None if self.space != _space() else _start(self.pid) == self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The lease `number` of a directory, held by this process until it is released or superseded."""

    def __init__(self, directory: Path, number: int, holder: Holder) -> None:
        """Use `take` or `hold`."""
        self.directory, self.number, self.holder = directory, number, holder
        self._lost, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._beat, name=f"lease of {directory.name}", daemon=True).start()

    @property
    def path(self) -> Path:
        """The file that stands for it."""
        return self.directory / f"lease.{self.number}"

    @property
    def lost(self) -> bool:
        """Whether somebody has superseded it, as far as the last look knows."""
        return self._lost.is_set()

    def check(self) -> None:
        """Look now. Raises LeaseLost where somebody has superseded it."""
        if newest_number(self.directory) != self.number:
            self._lost.set()
            raise LeaseLost(f"{self.directory} was taken over by a later attempt")

    def release(self) -> None:
        """End it. The file stays, so that the next number is higher."""
        self._ended.set()
        with contextlib.suppress(OSError), self.path.open("r+") as file:  # never made anew: it may be superseded
            file.truncate(0)
            file.write("free")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                os.utime(self.path)
                self.check()
            except (FileNotFoundError, LeaseLost):
                self._lost.set()
                return
            except OSError:  # a file system that hangs or is full for a while
                continue


def take(
    directory: Path,
    what: str,
    claim: Claim | None = None,
    wait_seconds: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the lease of `directory` (made if absent), waiting up to `wait_seconds` for a living holder to end.

    A holder gives way at once where it has released the lease, where its process is seen to be dead, or where both
    hold claims and `claim` is the later; one that cannot be seen after it has been silent for SILENT_SECONDS of this
    process's `clock`. Raises InputError, naming the holder, where it lives.
    """
    directory.mkdir(parents=True, exist_ok=True)
    started = clock()
    watched: tuple[int, int] | None = None  # lease number and its last touch
    since = started
    while True:
        number = newest_number(directory)
        holder, touched = _read(directory, number)
        if watched != (number, touched):
            moved = watched is not None
            watched, since = (number, touched), clock()
        else:
            moved = False
        if _may_take(holder, claim, silent=clock() - since >= SILENT_SECONDS):
            if lease := _create(directory, number + 1, Holder.this_process(claim)):
                return lease
            continue
        seen = isinstance(holder, Holder) and holder.alive()
        if clock() - started >= wait_seconds and (seen or moved):
            raise InputError(
                f"{what} {directory} is in use by {holder or 'another process'}; wait for it to end (isoloss status "
                "shows how far it is)"
            )
        sleep(0.05 if seen else 0.5)


@contextlib.contextmanager
def hold(directory: Path, what: str, claim: Claim | None = None, wait_seconds: float = 0.5) -> Iterator[Lease]:
    """`take` the lease of `directory` for the length of the block."""
    lease = take(directory, what, claim, wait_seconds)
    try:
        yield lease
    finally:
        lease.release()


def is_held(directory: Path, now: Callable[[], float] = time.time) -> bool:
    """Whether somebody seems to hold `directory` now. Looks once and changes nothing: a holder that cannot be seen
    counts as alive while its last touch is less than STALE_SECONDS away from `now`, seconds since the epoch."""
    holder, touched = _read(directory, newest_number(directory))
    if holder == "free":
        return False
    alive = holder.alive() if isinstance(holder, Holder) else None
    return abs(now() - touched / 1e9) < STALE_SECONDS if alive is None else alive


def last_claim(directory: Path) -> Claim | None:
    """The claim of whoever took the last lease of `directory`; None where they had none, or nobody took it."""
    holder, _ = _read(directory, newest_number(directory))
    return holder.claim if isinstance(holder, Holder) else None


def newest_number(directory: Path) -> int:
    """The number of the last lease that was taken of `directory`; 0 where there was none."""
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except FileNotFoundError:
        return 0
    return max((int(name[6:]) for name in names if name.startswith("lease.") and name[6:].isdigit()), default=0)


def _may_take(holder: Holder | str | None, claim: Claim | None, silent: bool) -> bool:
    if holder == "free":
        return True
    if isinstance(holder, Holder):
        if claim is not None and holder.claim is not None and claim > holder.claim:
            return True
        if (alive := holder.alive()) is not None:
            return not alive
    return silent


def _read(directory: Path, number: int) -> tuple[Holder | str | None, int]:
    """Holder of lease `number` ("free": nobody; None: its file is unreadable or being written) and the time of its
    last touch, in nanoseconds."""
    if number == 0:
        return "free", 0
    path = directory / f"lease.{number}"
    try:
        touched = path.stat().st_mtime_ns
        text = path.read_text()
        if text == "free":
            return "free", touched
        values: dict[str, Any] = json.loads(text)
        claim = values.pop("claim", None)
        return Holder(**values, claim=None if claim is None else (int(claim[0]), int(claim[1]))), touched
    except FileNotFoundError:  # superseded this moment: look again
        return None, -1
    except (OSError, ValueError, TypeError):
        return None, touched


def _create(directory: Path, number: int, holder: Holder) -> Lease | None:
    """Lease `number`, or None where another process was faster. Removes the files of those before."""
    try:
        descriptor = os.open(directory / f"lease.{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(asdict(holder)))
    if newest_number(directory) != number:  # others took and ended higher ones since the caller looked
        os.unlink(directory / f"lease.{number}")
        return None
    for entry in list(os.scandir(directory)):
        tail = entry.name.removeprefix("lease.")
        if tail != entry.name and tail.isdigit() and int(tail) < number:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
    return Lease(directory, number, holder)


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
