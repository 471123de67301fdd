"""Checkpoints: written atomically, verified when read, the newest valid one used. Nothing is unpickled.

A checkpoint is a pair of files, step-N.safetensors (tensors) and step-N.json (everything else, and a hash over both);
it exists once the second is in place. The one before is kept until the next.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sweep.atomic import write_atomic
from sweep.lease import Lease

KEPT = 2
CORRUPT = ".corrupt"

log = logging.getLogger(__name__)


def save(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], lease: Lease | None = None) -> None:
    """Write the checkpoint of `step` to `folder` and remove all but the newest two."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    data, note = folder / f"step-{step}.safetensors", folder / f"step-{step}.json"
    part = data.with_suffix(".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
    text = json.dumps(meta)
    written = _digest(part, text)
    _sync(part)
    part.rename(data)
    write_atomic(note, json.dumps({"hash": written, "meta": meta}))
    kept = {note.with_suffix(suffix).name for note in _notes(folder)[:KEPT] for suffix in (".json", ".safetensors")}
    for path in folder.iterdir():  # older ones, and what an interrupted write left
        if path.name not in kept and path.suffix != CORRUPT:
            path.unlink()


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and meta of the newest valid checkpoint, or None. A damaged one is named in a warning and
    set aside as *.corrupt, and the one before is used."""
    from safetensors.torch import load_file

    for note in _notes(folder):
        data = note.with_suffix(".safetensors")
        try:
            content = json.loads(note.read_text())
            if content["hash"] != _digest(data, json.dumps(content["meta"])):
                raise ValueError("its hash does not fit")
            return load_file(data), content["meta"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is damaged (%s); set aside, using the one before", note, error)
            for path in (note, data):
                if path.exists():
                    path.rename(path.with_name(path.name + CORRUPT))
    return None


def _notes(folder: Path) -> list[Path]:
    """The checkpoints' JSON files, newest first."""
    return sorted(folder.glob("step-*.json"), key=lambda path: int(path.stem.split("-")[1]), reverse=True)


def _digest(data: Path, text: str) -> str:
    with data.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(text.encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
