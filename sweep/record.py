"""The record of a run: the files of its directory, written atomically, and read back.

spec.json      the scientific configuration, with its run_id
manifest.json  code, packages, device, data: what the run was made with
status.json    where it stands, attempts, last error, final numbers
metrics.jsonl  one evaluation a line
steps.npz      train_loss, lr and grad_norm of every step
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweep.schema import (
    CURVE_COLUMNS,
    MANIFEST_FILE,
    METRICS_FILE,
    RUNS_DIR,
    SPEC_FILE,
    STATUS_FILE,
    STATUSES,
    STEPS_FILE,
    InputError,
)
from sweep.spec import PlannedRun, RunSpec, build

STEP_SERIES = ("train_loss", "lr", "grad_norm")


class RunRecord:
    """Writes the record of one run."""

    def __init__(self, run_dir: Path) -> None:
        """Creates the directory. Writes nothing yet."""
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)

    def begin(self, planned: PlannedRun, manifest: dict[str, Any]) -> None:
        """Note a further attempt. Raises InputError where the directory holds another run or other data."""
        before = _read_json(self.run_dir / SPEC_FILE)
        if before is not None and before.get("run_id") != planned.run_id:
            raise InputError(
                f"{self.run_dir} holds run {before.get('run_id')}, not {planned.run_id}; use another folder"
            )
        known = (_read_json(self.run_dir / MANIFEST_FILE) or {}).get("data_hash")
        if known not in (None, manifest["data_hash"]):
            raise InputError(
                f"{self.run_dir} was trained on data {known}, but the text now gives {manifest['data_hash']}; restore "
                "the text or use another sweep_dir"
            )
        spec = {"run_id": planned.run_id, **dataclasses.asdict(planned.spec)}
        write_json(self.run_dir / SPEC_FILE, spec)
        write_json(self.run_dir / MANIFEST_FILE, manifest)
        attempts = (read_status(self.run_dir) or {}).get("attempts", 0) + 1
        self.set_status("running", attempts=attempts, error=None, steps=planned.spec.steps)

    def set_status(self, status: str, **fields: Any) -> None:
        """Write status.json: `status`, the time, and `fields` over those that were there."""
        write_status(self.run_dir, status, **fields)

    def append(self, row: dict[str, Any]) -> None:
        """Add one evaluation (the keys of CURVE_COLUMNS but run_id) to metrics.jsonl."""
        assert set(row) == set(CURVE_COLUMNS) - {"run_id"}, sorted(row)
        with (self.run_dir / METRICS_FILE).open("a") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Make `rows`, those of the checkpoint that the run goes on from, all that metrics.jsonl holds."""
        write_atomic(self.run_dir / METRICS_FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_steps(self, series: Mapping[str, Sequence[float]]) -> None:
        """Replace steps.npz by `series` (the names of STEP_SERIES), float32 [steps so far] each."""
        part = self.run_dir / f"{STEPS_FILE}.{os.getpid()}.part"
        with part.open("wb") as stream:
            arrays: dict[str, Any] = {name: np.asarray(series[name], np.float32) for name in STEP_SERIES}
            np.savez(stream, **arrays)
        part.rename(self.run_dir / STEPS_FILE)


@dataclasses.dataclass(frozen=True)
class Record:
    """One run's record as read back."""

    run_id: str
    spec: RunSpec
    manifest: dict[str, Any]
    status: dict[str, Any]
    rows: list[dict[str, Any]]  # evaluations, ascending in step
    problems: list[str]  # damaged lines that were left out


def write_status(run_dir: Path, status: str, **fields: Any) -> None:
    """Write status.json of the run in `run_dir` (also from outside it, e.g. for a worker that was killed)."""
    assert status in STATUSES, status
    before = read_status(run_dir) or {"attempts": 0, "error": None}
    write_json(run_dir / STATUS_FILE, {**before, **fields, "status": status, "updated": time.time()})


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """Content of status.json (at least status, attempts, error), or None where it is missing or damaged."""
    status = _read_json(run_dir / STATUS_FILE)
    return status if status and status.get("status") in STATUSES else None


def run_dirs(sweep_dir: Path) -> list[Path]:
    """Folders under `sweep_dir` that hold a record, whole or damaged; sorted."""
    found = (sweep_dir / RUNS_DIR).glob("*/*.json")
    return sorted({path.parent for path in found if path.name in (SPEC_FILE, STATUS_FILE)})


def read_record(run_dir: Path) -> Record:
    """The record in `run_dir`. Damaged lines of metrics.jsonl are left out and named; raises InputError where spec,
    manifest or status cannot be read, or where a run that is done lacks its last evaluation (its loss would be another
    step's)."""
    spec, manifest, status = (_required(run_dir / name) for name in (SPEC_FILE, MANIFEST_FILE, STATUS_FILE))
    run_id = spec.pop("run_id", None)
    run = build(RunSpec, spec)
    if run_id != run.run_id:
        raise InputError(f"{run_dir / SPEC_FILE}: its fields do not hash to its run_id {run_id}")
    if status.get("status") not in STATUSES:
        raise InputError(f"{run_dir / STATUS_FILE}: unknown status {status.get('status')!r}")
    rows, problems = _read_rows(run_dir / METRICS_FILE)
    if status["status"] == "done" and (not rows or rows[-1]["step"] != run.steps):
        raise InputError(f"{run_dir}: done, but its evaluation at step {run.steps} is missing or damaged")
    return Record(run.run_id, run, manifest, status, rows, problems)


def read_steps(run_dir: Path) -> dict[str, np.ndarray]:
    """The series of every step so far, float32 [steps]. Raises InputError where steps.npz is missing or damaged."""
    try:
        with np.load(run_dir / STEPS_FILE, allow_pickle=False) as data:
            return {name: data[name] for name in STEP_SERIES}
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise InputError(f"{run_dir / STEPS_FILE} is missing or damaged ({error})") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content` as indented JSON, atomically."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Replace the file `path` by `text`, so that a reader or a crash sees the old or the new content, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _required(path: Path) -> dict[str, Any]:
    content = _read_json(path)
    if content is None:
        raise InputError(f"{path} is missing or damaged")
    return content


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluations in order, the later of two at one step, and a note for each damaged line."""
    rows: dict[int, dict[str, Any]] = {}
    problems = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if set(row) != set(CURVE_COLUMNS) - {"run_id"} or not math.isfinite(row["test_loss"]):
                raise ValueError
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            problems.append(f"{path} line {number} is damaged and left out")
    return [rows[step] for step in sorted(rows)], problems
