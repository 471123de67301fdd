"""Files that change as a whole: written beside their place and renamed into it, while a lease holds.

A rename that comes late, of an attempt that was cut off and comes back, finds nothing to rename, because whoever takes
a lease over first removes what those before have beside (see sweep.record).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sweep.lease import Lease


def write_json(path: Path, content: dict[str, Any], lease: Lease | None = None) -> None:
    """Replace `path` by `content` as indented JSON, atomically."""
    write_atomic(path, json.dumps(content, indent=1) + "\n", lease)


def write_atomic(path: Path, text: str, lease: Lease | None = None) -> None:
    """Replace the file `path` by `text`, so that a reader or a crash sees the old or the new content, never a part."""
    with replacing(path, lease) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path, lease: Lease | None = None) -> Iterator[BinaryIO]:
    """A stream, for appending, to the new content of the file `path`, which gets there at the end of the block: whole,
    and only while `lease` holds. Where that fails the old content stays and nothing else is left.

    Raises LeaseLost, and OSError naming `path`."""
    part = path.with_name(f"{path.name}.{lease.number if lease else 0}-{uuid.uuid4().hex[:8]}.part")
    try:
        with naming(path):
            with part.open("ab") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            place(part, path, lease)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def place(part: Path, path: Path, lease: Lease | None = None) -> None:
    """Rename `part` to `path` while `lease` holds. Raises LeaseLost where it does not: a later attempt, once it has the
    lease, removes the parts of those before, so that no rename can follow upon it."""
    if lease:
        lease.check()
    try:
        part.rename(path)
    except FileNotFoundError:
        if lease:
            lease.check()
        raise


def discard_parts(folder: Path, lease: Lease) -> None:
    """Remove what attempts before `lease` have beside the files of `folder`. Not what later ones have: this one may be
    superseded itself by now. Raises LeaseLost."""
    lease.check()
    for part in folder.glob("*.part"):
        number, dash, _ = part.name.split(".")[-2].partition("-")
        if dash and number.isdecimal() and int(number) >= lease.number:
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError of the block, which a failed write does not, and say what mends a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        hint = "; free some space, then the same command goes on" if full(error) else ""
        raise OSError(error.errno, os.strerror(error.errno) + hint, str(path)) from error


def full(error: BaseException) -> bool:
    """Whether `error` says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
