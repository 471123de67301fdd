"""How the runs of a job stand, and whether anything has moved since the job started before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sweep.atomic import write_json
from sweep.schema import CHECKPOINT_DIR, STATUS_FILE


@dataclass(frozen=True)
class Standing:
    """How runs stand at one start of their job."""

    notes: Path  # where the job's next start finds it
    runs: list[Any]
    idle: int  # starts in a row before this one at which they stood so

    @classmethod
    def now(cls, notes: Path, folders: Iterable[Path]) -> Self:
        """Of the runs in `folders`, compared with what `notes` holds."""
        runs, before = list(map(_stand, folders)), read(notes)
        return cls(notes, runs, before.get("idle", 0) + 1 if before.get("runs") == runs else 0)

    def note(self) -> None:
        """Write it down."""
        with contextlib.suppress(OSError):  # a full disk costs a run some patience only
            write_json(self.notes, {"runs": self.runs, "idle": self.idle})


def _stand(folder: Path) -> list[Any]:
    """How far a run is: what changes with every checkpoint, failure and end."""
    status = read(folder / STATUS_FILE)
    ended = status.get("status") if status.get("status") != "running" else None
    checkpoints = sorted(path.name.split("-a")[0] for path in (folder / CHECKPOINT_DIR).glob("step-*.json"))
    return [ended, status.get("failures", 0), checkpoints]


def read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
