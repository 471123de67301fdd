"""The files of a run directory as they are read back: whole and of the right types, or named as damaged.

Disks fill up, machines lose power and people edit files. What reads a record relies on the types given here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.schema import CURVE_COLUMNS, MANIFEST_FILE, METRICS_FILE, STATUS_FILE, STATUSES, InputError
from sweep.spec import build

ROW = CURVE_COLUMNS.keys() - {"run_id"}  # the keys of a line of metrics.jsonl
TAIL_BYTES = 8192  # of metrics.jsonl that hold its last line


@dataclass(frozen=True)
class _Status:
    """What status.json may hold, beside fields that nobody reads."""

    status: str
    attempts: int = 0
    failures: int = 0
    attempt: int = 0
    claim: tuple[int, ...] | None = None
    updated: float = 0.0
    error: str | None = None
    retry: bool = True
    traceback: bool = False
    notes: tuple[str, ...] = ()
    step: int = 0
    steps: int = 0
    micro_batch: int | None = None
    halved_in: tuple[int, ...] = ()
    ranks: int = 1
    wall_s: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class _Manifest:
    """What readers take from manifest.json."""

    data_hash: str | None = None
    unique_tokens: float | None = None
    bytes_per_token: float | None = None
    device: str | None = None


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that the file `path` holds; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def required(path: Path) -> dict[str, Any]:
    """As `read_json`; raises InputError instead of None."""
    content = read_json(path)
    if content is None:
        raise InputError(f"{path} is missing or damaged")
    return content


def required_status(run_dir: Path) -> dict[str, Any]:
    """Content of status.json, whose status is one of STATUSES. Raises InputError where it is missing or damaged."""
    content = _typed(run_dir / STATUS_FILE, _Status)
    if content["status"] not in STATUSES:
        raise InputError(f"{run_dir / STATUS_FILE}: unknown status {content['status']!r}")
    return content


def stored_status(run_dir: Path) -> dict[str, Any] | None:
    """As `required_status`, and None instead of InputError."""
    try:
        return required_status(run_dir)
    except InputError:
        return None


def required_manifest(run_dir: Path) -> dict[str, Any]:
    """Content of manifest.json. Raises InputError where it is missing or damaged."""
    return _typed(run_dir / MANIFEST_FILE, _Manifest)


def line(row: dict[str, Any]) -> bytes:
    """One evaluation as a line of metrics.jsonl."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def read_rows(run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluations in order, the later of two at one step, and a note for each damaged line. Raises InputError where
    there is something that cannot be read."""
    path, rows, problems = run_dir / METRICS_FILE, {}, []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    for number, text in enumerate(lines, 1):
        if (row := _row(text)) is None:
            problems.append(f"{path} line {number} is damaged and left out")
        else:
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)], problems


def last_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """The newest whole row of a run's metrics, or None."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    return next((row for text in reversed(lines) if (row := _row(text)) is not None), None)


def _row(text: str | bytes) -> dict[str, Any] | None:
    """The evaluation of a line: numbers, of which only the standard error may be missing. None where it is damaged."""
    try:
        row = json.loads(text)
        if row.keys() != ROW or type(row["step"]) is not int:
            return None
        for name, value in row.items():
            known = type(value) in (int, float) and math.isfinite(value)
            if not known and (value is not None or name != "test_loss_se"):
                return None
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return None
    return row


def _typed(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Content of the JSON file `path`, as it is, once the fields that `kind` knows are of its types."""
    content = required(path)
    known = {field.name for field in dataclasses.fields(kind)}
    try:
        build(kind, {name: value for name, value in content.items() if name in known})
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return content
