"""A copy of the code in the sweep directory, from which its jobs run: what was planned is what is trained, whatever
happens to the checkout while they wait."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from sweep.manifest import CODE_FILE, PACKAGED, code_root, code_version
from sweep.schema import InputError

FOLDER = "code"  # in the sweep directory
SUFFIXES = frozenset({".py", ".yaml", ".csv", ".html"})
HASH_DIGITS = 16


def check_committed(allow_dirty: bool) -> dict[str, Any]:
    """The commit of the checkout that this code runs from and whether it has uncommitted changes; empty without one.
    Raises InputError where it has some and `allow_dirty` is false."""
    origin = {key: value for key, value in code_version().items() if key != "hash"}
    if origin.get("dirty") and not allow_dirty:
        raise InputError(
            f"{code_root()} has uncommitted changes, so no commit says what would run; commit them, or set "
            "launcher.allow_dirty=true"
        )
    return origin


def take_snapshot(sweep_dir: Path, allow_dirty: bool) -> dict[str, Any]:
    """Copy the packages to SWEEP_DIR/code/HASH, or find them there. Returns its path and hash and what
    `check_committed` says, whose errors it raises."""
    origin = check_committed(allow_dirty)
    files = _files(code_root())
    code = {**origin, "hash": _hash(files, origin)}
    target = sweep_dir / FOLDER / code["hash"]
    if not (target / CODE_FILE).exists():
        _write(target, files, code)
    return {"path": str(target), **code}


def _files(root: Path) -> dict[str, bytes]:
    """Content of the packages' files by relative path."""
    paths = (path for package in PACKAGED for path in sorted((root / package).rglob("*")))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.suffix in SUFFIXES}


def _hash(files: dict[str, bytes], origin: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode())
    for name, content in files.items():
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:HASH_DIGITS]


def _write(target: Path, files: dict[str, bytes], code: dict[str, Any]) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, content in files.items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (part / CODE_FILE).write_text(json.dumps(code, indent=1) + "\n")
    try:
        part.rename(target)
    except OSError:  # somebody else was faster with the same content
        if not (target / CODE_FILE).exists():
            raise
        shutil.rmtree(part)
