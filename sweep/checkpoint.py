"""Checkpoints: written atomically, verified when read, the newest valid one used. Nothing is unpickled.

A checkpoint is step-N-aA.json, of attempt A at the run, with one file of tensors beside it or, where every rank holds a
part of the state, one a rank: step-N-aA-RofS.safetensors. One that was made K sequences into the batch of the step
after N is step-N+K-aA. The JSON file names them with their hashes and says which
pieces of the state's vectors each one holds, so that any number of ranks can read it. It comes last: with it the
checkpoint exists. The one before, at another position, is kept until the next. Those further ahead are of a course that
was given up, and go.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sweep.atomic import naming, write_atomic
from sweep.lease import Lease
from sweep.world import SINGLE, World

KEPT = 2
CORRUPT = ".corrupt"
NAME = re.compile(r"step-(\d+)(?:\+(\d+))?-a(\d+)")

Position = tuple[int, int]  # steps done, and sequences of the next one's batch
Pieces = list[tuple[int, int]]  # [start, stop) of the state's vectors, ascending

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What one rank holds of a state that is spread over ranks: the `pieces` of each of its vectors, one after another
    in `vectors`."""

    pieces: Pieces
    vectors: dict[str, Tensor]


class Checkpoint:
    """A checkpoint as read back: plain data `meta`, and tensors on the CPU, read from the files when asked for."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        """Raises OSError, ValueError, KeyError or TypeError for files that are missing or not what `content` says."""
        self.meta: dict[str, Any] = content["meta"]
        self._files = [safe_open(folder / shard["file"], framework="pt") for shard in content["shards"]]
        self._where = {name: index for index, file in enumerate(self._files) for name in file.keys()}  # noqa: SIM118
        self._vectors: dict[str, int] = content["vectors"]
        spans = [(*span, index) for index, shard in enumerate(content["shards"]) for span in shard["pieces"]]
        used = [0] * len(self._files)  # of each file's vectors, whose pieces lie one after another
        self._spans: list[tuple[int, int, int, int]] = []  # start and stop in the vector, file, start in the file
        for start, stop, index in sorted(spans):
            self._spans.append((start, stop, index, used[index]))
            used[index] += stop - start
        ends = [0, *(stop for _, stop, _, _ in self._spans)]
        if self._vectors and ends != [*(start for start, _, _, _ in self._spans), *set(self._vectors.values())]:
            raise ValueError("its pieces do not add up")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """Of all tensors."""
        return sorted(self._where)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor `name`."""
        if name in self._vectors:
            return self.piece(name, 0, self._vectors[name])
        return self._files[self._where[name]].get_tensor(name)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the vector `name`, whichever ranks wrote them."""
        if name not in self._vectors:
            return self._files[self._where[name]].get_slice(name)[start:stop]
        found, at = torch.empty(stop - start), start
        index = bisect_right(self._spans, start, key=lambda span: span[0]) - 1
        while at < stop:
            first, last, file, offset = self._spans[index]
            until = min(stop, last)
            stored = self._files[file].get_slice(name)
            found[at - start : until - start] = stored[offset + at - first : offset + until - first]
            at, index = until, index + 1
        return found


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    lease: Lease | None = None,
    world: World = SINGLE,
    share: Share | None = None,
    into: int = 0,
) -> None:
    """Write the checkpoint of `step`, or `into` sequences beyond it, to `folder` and remove all but it and the one
    before. Every rank calls it.

    `tensors` (whole), `meta` and `lease` are rank 0's and passed over on the others; `share` is each rank's own. On
    every rank raises LeaseLost where a later attempt has taken over, and OSError, naming the path, where a rank cannot
    write: then nothing of it remains.
    """
    stem = f"step-{step}{f'+{into}' if into else ''}-a{world.broadcast(lease.number if lease else 0)}"
    data = folder / (f"{stem}.safetensors" if share is None else f"{stem}-{world.rank}of{world.size}.safetensors")
    vectors = share.vectors if share else {}
    pieces = share.pieces if share else []

    def write() -> dict[str, Any] | None:
        if world.rank and share is None:
            return None
        return {"file": data.name, "hash": _write(data, ({} if world.rank else tensors) | vectors), "pieces": pieces}

    def commit() -> None:
        length = sum(stop - start for shard in shards for start, stop in shard["pieces"])
        content = {"vectors": dict.fromkeys(sorted(vectors), length), "shards": shards, "meta": meta}
        write_atomic(folder / f"{stem}.json", json.dumps({"hash": _hash(content), **content}), lease)
        _clean(folder, (step, into), lease)

    try:
        shards = [shard for shard in world.each(write) if shard]
        world.first(commit)
    except Exception:
        if (share or world.rank == 0) and not (folder / f"{stem}.json").exists():  # one of before, which stays
            with contextlib.suppress(OSError):
                data.unlink()
        raise


def load_newest(
    folder: Path,
    world: World = SINGLE,
    note: Callable[[str], None] | None = None,
    wanted: Callable[[Position], bool] = lambda _: True,
) -> Checkpoint | None:
    """The newest valid checkpoint at a `wanted` position, or None. Every rank calls it and gets the same one, the ranks
    having shared the checking of its files. A damaged one is named in a warning (and given to `note`, on rank 0), set
    aside as *.corrupt, and the one before is used."""
    found = world.first(lambda: [path.name for path in _newest_first(folder) if wanted(_position(path))])
    for name in found:
        index = folder / name
        problems = [p for p in world.each(partial(_problem, index, world)) if p]
        if not problems:
            return Checkpoint(folder, json.loads(index.read_text()))
        text = f"checkpoint {index} is damaged ({problems[0]}); set aside, using the one before"
        world.first(partial(_set_aside, index, text, note))
    return None


def _write(data: Path, tensors: dict[str, Tensor]) -> str:
    """Write the file `data`; returns its hash. Raises OSError, and then leaves nothing."""
    part = data.with_suffix(".part")
    try:
        with naming(data):
            data.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
            except SafetensorError as error:
                code = re.search(r"os error (\d+)", str(error))
                raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
            written = _file_hash(part)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.rename(data)
        return written
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _clean(folder: Path, written: Position, lease: Lease | None) -> None:
    """Remove the older checkpoints, those ahead of the position `written`, and what interrupted writes left, of this
    attempt and those before."""
    last = {_position(path): path.stem for path in reversed(_newest_first(folder))}  # attempt at each position
    kept = [stem for position, stem in last.items() if position <= written][-KEPT:]
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json"):  # without that there is none
        match = NAME.match(path.name)
        newer = match and lease and int(match[3]) > lease.number
        if not newer and path.suffix != CORRUPT and (match[0] if match else None) not in kept:
            path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints' JSON files, by position and then by attempt."""
    found = [path for path in folder.glob("step-*.json") if NAME.fullmatch(path.stem)]
    return sorted(found, key=lambda path: (_position(path), int(path.stem.rpartition("-a")[2])), reverse=True)


def _position(path: Path) -> Position:
    """Of the checkpoint of this JSON file."""
    step, into, _ = NAME.match(path.stem).groups()  # type: ignore[union-attr]
    return int(step), int(into or 0)


def _problem(index: Path, world: World) -> str | None:
    """What is wrong with the checkpoint of the JSON file `index`, of its tensor files looking at this rank's share."""
    try:
        content = json.loads(index.read_text())
        if content.pop("hash") != _hash(content):
            raise ValueError("its hash does not fit")
        for shard in content["shards"]:  # names inside the folder only
            if not re.fullmatch(rf"{re.escape(index.stem)}(-\d+of\d+)?\.safetensors", shard["file"]):
                raise ValueError(f"{shard['file']!r} is not the name of one of its files")
        for shard in content["shards"][world.rank :: world.size]:
            if shard["hash"] != _file_hash(index.with_name(shard["file"])):
                raise ValueError(f"the hash of {shard['file']} does not fit")
        Checkpoint(index.parent, content)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return str(error)
    return None


def _set_aside(index: Path, text: str, note: Callable[[str], None] | None) -> None:
    log.warning("%s", text)
    if note:
        note(text)
    for path in [*index.parent.glob(f"{index.stem}[.-]*"), index]:
        if path.suffix != CORRUPT and path.exists():
            path.rename(path.with_name(path.name + CORRUPT))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
