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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from sweep.holder import Claim, Holder
from sweep.schema import InputError

BEAT_SECONDS = 10.0  # between two touches of a holder's file
SILENT_SECONDS = 60.0  # after which a holder whose process cannot be seen counts as dead
STALE_SECONDS = 300.0  # age of a touch beyond which `is_held`, which cannot wait, calls its unseen holder dead

FREE = "free"  # content of a lease's file that was released


class LeaseLost(Exception):
    """A later attempt has taken the directory over: nothing more may be written to it."""


class Lease:
    """The lease `number` of a directory: held by this process (see `take`, `hold`), or by another one on behalf of
    which this one writes."""

    def __init__(self, directory: Path, number: int, holder: Holder) -> None:
        """For a process that writes under a lease that another one keeps alive."""
        self.directory, self.number, self.holder = directory, number, holder
        self._lost, self._ended = threading.Event(), threading.Event()

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

    def keep(self) -> None:
        """Touch its file from now on, for those who cannot see this process."""
        threading.Thread(target=self._beat, name=f"lease of {self.directory.name}", daemon=True).start()

    def release(self) -> None:
        """End it. The file stays, so that the next number is higher."""
        self._ended.set()
        with contextlib.suppress(OSError), self.path.open("r+") as file:  # never made anew: it may be superseded
            file.write(FREE)  # over what is there: that needs no space on a full disk
            file.truncate()

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
    process's `clock`, of which a jump counts as one short pause. Raises InputError, naming the holder, where it lives,
    and at once LeaseLost where its claim is later than `claim`.
    """
    waited = silent = 0.0
    before: tuple[int, int] | None = None  # the lease looked at last: its number and last touch
    moved = False
    while True:
        number, holder, touched = _newest(directory)
        if before not in (None, (number, touched)):
            silent, moved = 0.0, True
        before = number, touched
        if _may_take(holder, claim, silent >= SILENT_SECONDS):
            if lease := _create(directory, number + 1, Holder.this_process(claim)):
                lease.keep()
                return lease
            continue
        if claim is not None and isinstance(holder, Holder) and holder.claim is not None and claim < holder.claim:
            raise LeaseLost(f"{directory} was taken over by a later attempt")
        seen = holder.alive() is not None if isinstance(holder, Holder) else False
        if waited >= wait_seconds and (seen or moved):
            raise InputError(
                f"{what} {directory} is in use by {holder or 'another process'}; wait for it to end (isoloss status "
                "shows how far it is)"
            )
        started, pause = clock(), 0.05 if seen else 0.5
        sleep(pause)
        passed = min(max(clock() - started, 0.0), 4 * pause)
        waited, silent = waited + passed, silent + passed


@contextlib.contextmanager
def hold(directory: Path, what: str, claim: Claim | None = None, wait_seconds: float = 0.5) -> Iterator[Lease]:
    """`take` the lease of `directory` for the length of the block. A block that raises before it has put anything into
    a new directory leaves no directory behind."""
    absent = [path for path in (directory, *directory.parents) if not path.exists()]
    lease = take(directory, what, claim, wait_seconds)
    try:
        yield lease
    except BaseException:
        lease.release()
        _forget(lease, absent)
        raise
    lease.release()


def is_held(directory: Path, now: Callable[[], float] = time.time) -> bool:
    """Whether somebody seems to hold `directory` now. Looks once and changes nothing: a holder that cannot be seen
    counts as alive while its last touch is less than STALE_SECONDS away from `now`, seconds since the epoch."""
    _, holder, touched = _newest(directory)
    if holder == FREE:
        return False
    alive = holder.alive() if isinstance(holder, Holder) else None
    return abs(now() - touched / 1e9) < STALE_SECONDS if alive is None else alive


def newest_number(directory: Path) -> int:
    """The number of the last lease that was taken of `directory`; 0 where there was none."""
    return max(_numbers(directory), default=0)


def _numbers(directory: Path) -> list[int]:
    try:
        tails = [name.removeprefix("lease.") for name in os.listdir(directory) if name.startswith("lease.")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(tail) for tail in tails if tail.isdecimal()]


def _may_take(holder: Holder | str | None, claim: Claim | None, silent: bool) -> bool:
    if holder == FREE:
        return True
    if isinstance(holder, Holder):
        if claim is not None and holder.claim is not None and claim > holder.claim:
            return True
        if (alive := holder.alive()) is not None:
            return not alive
    return silent


def _newest(directory: Path) -> tuple[int, Holder | str | None, int]:
    """Number of the last lease, its holder (FREE: nobody; None: its file is unreadable or being written) and the time
    of its last touch, in nanoseconds."""
    while True:
        number = newest_number(directory)
        if number == 0:
            return 0, FREE, 0
        try:
            # Opening comes first: a network file system then asks its server and no cache of its own.
            with (directory / f"lease.{number}").open() as file:
                touched, text = os.fstat(file.fileno()).st_mtime_ns, file.read()
        except FileNotFoundError:  # superseded this moment
            continue
        except OSError:
            return number, None, 0
        return number, FREE if text == FREE else Holder.read(text), touched


def _create(directory: Path, number: int, holder: Holder) -> Lease | None:
    """Lease `number`, or None where another process was faster. Removes the files of those before."""
    path = directory / f"lease.{number}"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except (FileExistsError, FileNotFoundError):  # or the directory has just been removed
        return None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(holder)))
        taken = newest_number(directory) == number  # else others took and ended higher ones since the caller looked
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not taken:
        path.unlink(missing_ok=True)
        return None
    for older in _numbers(directory):
        if older < number:
            (directory / f"lease.{older}").unlink(missing_ok=True)
    return Lease(directory, number, holder)


def _forget(lease: Lease, absent: list[Path]) -> None:
    """Remove what taking a directory's first lease has made, of which `absent` was not there before, the innermost
    first; nothing where there is more in it."""
    with contextlib.suppress(OSError):
        if lease.number == 1 and [path.name for path in lease.directory.iterdir()] == [lease.path.name]:
            lease.path.unlink()
            for path in absent:
                path.rmdir()
