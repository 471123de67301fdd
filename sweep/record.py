"""The record of a run: the files of its directory, written atomically, and read back.

spec.json      the scientific configuration, with its run_id
manifest.json  code, packages, device, data, and how it is computed: what the run was made with
status.json    where it stands, attempts, last error, final numbers
metrics.jsonl  one evaluation a line
steps.npz      train_loss, lr and grad_norm of every step

An attempt writes under its lease. Each file is written beside its place and renamed into it while the lease holds; the
next attempt first removes what those before have beside, so that the rename of an attempt that was cut off and comes
back finds nothing. The metrics, of which each attempt begins a file of its own, are appended to through one descriptor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweep.atomic import discard_parts, naming, place, replacing, write_atomic, write_json
from sweep.lease import Lease, newest_number
from sweep.run_dir import run_dir as folder_of
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
from sweep.spec import Execution, PlannedRun, RunSpec, build
from sweep.stored import line, read_json, read_rows, required, required_manifest, required_status, stored_status

STEP_SERIES = ("train_loss", "lr", "grad_norm")
FINISHED = frozenset({"done", "diverged", "out_of_memory"})  # statuses that are results: not trained again
TRACEBACK_FILE = "error.txt"  # the whole of the last exception
NOTES_KEPT = 20
FAILURE_FIELDS = ("retry", "traceback")  # of a failed run's status only


class RunRecord:
    """Writes the record of one run: of the attempt that holds `lease`, so that every write raises LeaseLost once a
    later attempt has taken over, or (None) unguarded."""

    def __init__(self, run_dir: Path, lease: Lease | None = None) -> None:
        """Creates the directory. Writes nothing yet."""
        self.run_dir, self.lease = run_dir, lease
        self._metrics: io.FileIO | None = None
        self._notes: list[str] = []  # not written yet
        run_dir.mkdir(parents=True, exist_ok=True)

    def adopt(self) -> str | None:
        """The status of the run where an attempt before this one has finished it, which becomes this attempt's; None
        where there is still something to do. Removes what attempts before were writing."""
        if self.lease:
            discard_parts(self.run_dir, self.lease)
        status = (stored_status(self.run_dir) or {}).get("status")
        if status not in FINISHED or damage(self.run_dir):
            return None
        self.set_status(status)
        return str(status)

    def identify(self, planned: PlannedRun) -> None:
        """Say which run this is. Raises InputError where the directory holds another one."""
        recorded = read_json(self.run_dir / SPEC_FILE)
        if recorded is not None and recorded.get("run_id") != planned.run_id:
            raise InputError(
                f"{self.run_dir} holds run {recorded.get('run_id')}, not {planned.run_id}; use another folder"
            )
        spec = {"run_id": planned.run_id, **dataclasses.asdict(planned.spec)}
        write_json(self.run_dir / SPEC_FILE, spec, self.lease)

    def begin(self, planned: PlannedRun, manifest: dict[str, Any]) -> None:
        """Note a further attempt. Raises InputError where the directory holds another run or other data."""
        self.identify(planned)
        known = (read_json(self.run_dir / MANIFEST_FILE) or {}).get("data_hash")
        if known not in (None, manifest["data_hash"]):
            raise InputError(
                f"{self.run_dir} was trained on data {known}, but the text now gives {manifest['data_hash']}; restore "
                "the text or use another sweep_dir"
            )
        if self.lease:
            discard_parts(self.run_dir, self.lease)
        computed = {"execution": dataclasses.asdict(planned.execution)}
        write_json(self.run_dir / MANIFEST_FILE, manifest | computed, self.lease)
        before = read_status(self.run_dir) or {}
        attempts, failures = before.get("attempts", 0) + 1, before.get("failures", 0)
        self.set_status("running", attempts=attempts, failures=failures, error=None, steps=planned.spec.steps)

    def set_status(self, status: str, **fields: Any) -> None:
        """Write status.json: `status`, the time, this attempt, and `fields` over those that were there."""
        if status in FINISHED and self._metrics is not None:
            os.fsync(self._metrics.fileno())  # its last evaluation is not to be missing after a power cut
        before = stored_status(self.run_dir) or {}
        notes = [*before.get("notes", []), *self._notes]
        if notes:
            fields["notes"] = list(dict.fromkeys(notes))[-NOTES_KEPT:]
        write_status(self.run_dir, status, self.lease, **fields)
        self._notes = []

    def note(self, text: str) -> None:
        """Add a line to the status's notes: something a person should know that did not end the attempt. Where it
        cannot be written now, because the disk is full, it is with the next status."""
        self._notes.append(text)
        with contextlib.suppress(OSError):
            self.set_status((read_status(self.run_dir) or {}).get("status", "running"))

    def fail(self, error: str, traceback: str | None = None, retry: bool = True) -> None:
        """The attempt has ended in `error`; `traceback` is kept whole, `retry` says whether trying again may help. Of
        several processes of one attempt the first counts, unless only a later one has a traceback."""
        before = read_status(self.run_dir) or {}
        known = bool(self.lease and before.get("status") == "failed" and before.get("attempt") == self.lease.number)
        if known and (traceback is None or before.get("traceback")):
            return
        if traceback is not None:
            write_atomic(self.run_dir / TRACEBACK_FILE, traceback, self.lease)
        failures = before.get("failures", 0) + (not known)
        self.set_status("failed", error=error, failures=failures, retry=retry, traceback=traceback is not None)

    def append(self, row: dict[str, Any]) -> None:
        """Add one evaluation (the keys of CURVE_COLUMNS but run_id) to metrics.jsonl, the whole line or nothing."""
        assert set(row) == set(CURVE_COLUMNS) - {"run_id"}, sorted(row)
        if self._metrics is None:
            self.rewind(read_rows(self.run_dir)[0])
        assert self._metrics is not None
        if self.lease:
            self.lease.check()
        with naming(self.run_dir / METRICS_FILE):
            size, text = os.fstat(self._metrics.fileno()).st_size, line(row)
            try:
                if self._metrics.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._metrics.fileno(), size)
                raise

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Make `rows`, those of the checkpoint that the run goes on from, all that metrics.jsonl holds: a new file, so
        that what an attempt before still appends goes to one that nobody sees."""
        with replacing(self.run_dir / METRICS_FILE, self.lease) as stream:
            stream.write(b"".join(map(line, rows)))
            metrics = io.FileIO(os.dup(stream.fileno()), "ab")
        self._metrics = metrics

    def write_steps(self, series: Mapping[str, Sequence[float]]) -> None:
        """Replace steps.npz by `series` (the names of STEP_SERIES), float32 [steps so far] each."""
        arrays: dict[str, Any] = {name: np.asarray(series[name], np.float32) for name in STEP_SERIES}
        content = io.BytesIO()  # an archive is not written from its start to its end
        np.savez(content, **arrays)
        with replacing(self.run_dir / STEPS_FILE, self.lease) as stream:
            stream.write(content.getbuffer())

    def put_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Put the files that `write` makes in a new folder into the folder `name`, over those of the same names."""
        with naming(self.run_dir / name):
            part = self.run_dir / f"{name}.{self.lease.number if self.lease else 0}-{uuid.uuid4().hex[:8]}.part"
            try:
                write(part)
                (self.run_dir / name).mkdir(exist_ok=True)
                for path in sorted(part.iterdir()):
                    place(path, self.run_dir / name / path.name, self.lease)
            finally:
                shutil.rmtree(part, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Record:
    """One run's record as read back."""

    run_id: str
    spec: RunSpec
    manifest: dict[str, Any]
    status: dict[str, Any]
    rows: list[dict[str, Any]]  # evaluations, ascending in step
    problems: list[str]  # damaged lines that were left out


def write_status(run_dir: Path, status: str, lease: Lease | None = None, **fields: Any) -> None:
    """Write status.json of the run in `run_dir`: `status`, the time, the attempt of `lease`, and `fields` over those
    that were there."""
    assert status in STATUSES, status
    before = stored_status(run_dir) or {"attempts": 0, "error": None}
    attempt = {"attempt": lease.number, "claim": lease.holder.claim} if lease else {}
    content = {**before, **fields, **attempt, "status": status, "updated": time.time()}
    if status != "failed":
        content = {name: value for name, value in content.items() if name not in FAILURE_FIELDS}
    write_json(run_dir / STATUS_FILE, content, lease)


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """Content of status.json (at least status, attempts, error), or None where it is missing or damaged. A result of an
    attempt that a later one has superseded reads as running, since only the later one's will count."""
    status = stored_status(run_dir)
    return _in_force(run_dir, status) if status else None


def _in_force(run_dir: Path, status: dict[str, Any]) -> dict[str, Any]:
    superseded = status["status"] in FINISHED and "attempt" in status and status["attempt"] < newest_number(run_dir)
    return {**status, "status": "running"} if superseded else status


def run_dirs(sweep_dir: Path) -> list[Path]:
    """Folders under `sweep_dir` that hold a record, whole or damaged; sorted."""
    found = (sweep_dir / RUNS_DIR).glob("*/*.json")
    return sorted({path.parent for path in found if path.name in (SPEC_FILE, STATUS_FILE)})


def read_record(run_dir: Path) -> Record:
    """The record in `run_dir`. Damaged lines of metrics.jsonl are left out and named; raises InputError where spec,
    manifest or status cannot be read, or where a run that is done lacks its last evaluation (its loss would be another
    step's)."""
    record = _read(run_dir)
    return dataclasses.replace(record, status=_in_force(run_dir, record.status))


def read_run(sweep_dir: Path, name: str) -> Record:
    """The record in the folder `name` of a sweep's runs. Raises InputError as `read_record` does, and where the folder
    is not that of its run: a copy would count twice, a link may lead out of the sweep directory."""
    record = read_record(folder_of(sweep_dir, name))
    if record.run_id != name:
        raise InputError(f"{sweep_dir / RUNS_DIR / name} holds the record of run {record.run_id}; move it away")
    return record


def read_execution(run_dir: Path) -> Execution | None:
    """How the run in `run_dir` is computed, as its last attempt began; None where no attempt has, or it is damaged."""
    try:
        return build(Execution, (read_json(run_dir / MANIFEST_FILE) or {})["execution"])
    except (KeyError, InputError):
        return None


def damage(run_dir: Path) -> str | None:
    """Why the record in `run_dir` cannot be read, or None; superseded or not."""
    try:
        _read(run_dir)
    except InputError as error:
        return str(error)
    return None


def _read(run_dir: Path) -> Record:
    spec, manifest, status = required(run_dir / SPEC_FILE), required_manifest(run_dir), required_status(run_dir)
    run_id = spec.pop("run_id", None)
    run = build(RunSpec, spec)
    if run_id != run.run_id:
        raise InputError(f"{run_dir / SPEC_FILE}: its fields do not hash to its run_id {run_id}")
    rows, problems = read_rows(run_dir)
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
