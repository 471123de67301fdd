"""Where the record of a run lies: never outside the sweep directory, whatever a file gives as its run_id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sweep.schema import RUNS_DIR, InputError

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_START = re.compile(r"[0-9a-f]{1,16}")


def run_dir(sweep_dir: Path, run_id: str) -> Path:
    """SWEEP_DIR/runs/RUN_ID, which need not exist. The folder of all runs may be a link to other storage; one run may
    not lead out of it.

    Raises InputError where `run_id` is not 16 hexadecimal digits, or where the folder is a link to somewhere else.
    """
    folder = sweep_dir / RUNS_DIR / checked(run_id)
    if folder.is_symlink() and folder.resolve().parent != folder.parent.resolve():
        raise InputError(f"{folder} is a link out of {sweep_dir}; put the folder itself there, or remove the link")
    return folder


def checked(run_id: str) -> str:
    """`run_id` itself. Raises InputError where it is not 16 hexadecimal digits."""
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(f"{run_id!r} is no run_id (16 hexadecimal digits)")
    return run_id


def matching(run_ids: Iterable[str], given: str) -> str:
    """The one of `run_ids` that starts with `given`. Raises InputError where there is none, or more than one."""
    found = [run_id for run_id in run_ids if run_id.startswith(given)] if _START.fullmatch(given) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{given} is the start of {len(found)} run_ids; give more of its digits")
    raise InputError(f"{given!r} is no run of this sweep, nor the start of its run_id; isoloss status lists them")
