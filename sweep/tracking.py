"""Weights & Biases as a mirror of the record, never the record: live while a run trains, or at any later time from the
run directories. Its failures are reported in one line and never reach the run.

A W&B run has the id of its run and lies in the group of its sweep. Its history has one row an evaluation, then one row
a bucket of training steps, always in the same order: so row i is the same whoever writes it, and a mirror that was cut
off is completed by writing the rows it lacks.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sweep.collect import run_row
from sweep.config import TrackingConfig
from sweep.launch.freeze import FINISHED
from sweep.launch.lock import is_held
from sweep.record import read_record, read_steps
from sweep.schema import PLAN_FILE, RUNS_DIR, SPEC_FILE, InputError
from sweep.spec import Execution, PlannedRun, RunSpec, Source

FOLDER = "wandb"  # in the sweep directory: W&B's own files and the marks of what has been mirrored
STEP_ROWS = 1000  # of a run's training losses; longer runs are averaged over that many equal buckets
NETWORK_SECONDS = 60.0  # to wait for W&B at the start and at the end of a run


@dataclass(frozen=True)
class Destination:
    """Where a mirror goes."""

    project: str
    entity: str | None
    mode: str  # online or offline

    @classmethod
    def from_config(cls, tracking: TrackingConfig) -> Destination:
        """From the group `tracking`; mode auto is online where the user has a key, else offline."""
        auto = "online" if has_key() else "offline"
        return cls(tracking.project, tracking.entity, auto if tracking.mode == "auto" else tracking.mode)


def has_key() -> bool:
    """Whether the user is logged in to W&B (environment or netrc). The key itself is never read into the record."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc
    from urllib.parse import urlsplit

    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Mirror:
    """Starts the trackers of one process. With no tracking it starts silent ones."""

    def __init__(self, tracking: TrackingConfig, say: Callable[[str], None] = print) -> None:
        self.destination = Destination.from_config(tracking) if tracking.name == "wandb" else None
        self.say = say

    def start(self, planned: PlannedRun, run_dir: Path) -> Tracker:
        """The tracker of one run about to be trained."""
        return Tracker(self, planned, run_dir)

    def failed(self, error: Exception) -> None:
        """Say what went wrong, once, and write offline from now on, since the network is the likely cause."""
        if self.destination is None:
            return
        offline = self.destination.mode == "offline"
        self.say(
            f"W&B: {type(error).__name__}: {' '.join(str(error).split())[:200]}; "
            + ("not mirrored" if offline else "offline from now on")
            + ", isoloss sync completes it from the record"
        )
        self.destination = None if offline else replace(self.destination, mode="offline")


class Tracker:
    """Mirrors one run live. It starts with the run's first evaluation, when the record is open."""

    def __init__(self, mirror: Mirror, planned: PlannedRun, run_dir: Path) -> None:
        self.mirror, self.planned, self.run_dir = mirror, planned, run_dir
        self.run: _WandbRun | None = None
        self.dead = mirror.destination is None

    def evaluation(self, row: dict[str, Any]) -> None:
        """An evaluation has been reached; `row` has the keys of the record's metrics."""
        if self.dead:
            return
        try:
            if self.run is None:
                assert self.mirror.destination is not None
                self.run = _WandbRun(self.mirror.destination, self.planned, self.run_dir)
                for earlier in read_record(self.run_dir).rows:  # of before this process resumed the run
                    if earlier["step"] < row["step"]:
                        self.run.log(earlier)
            self.run.log(row)
        except Exception as error:
            self.dead = True
            self.mirror.failed(error)

    def finish(self, status: str) -> None:
        """The run has ended for now with `status`."""
        if self.dead or self.run is None:
            return
        try:
            self.run.finish(status)
        except Exception as error:
            self.mirror.failed(error)


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did: run_ids."""

    written: list[str]
    current: list[str]  # mirrored completely before
    active: list[str]  # being trained now, so left to their own tracker
    damaged: list[str]  # what cannot be read, and where
    destination: Destination


def sync(sweep_dir: Path, destination: Destination, say: Callable[[str], None] = print) -> SyncResult:
    """Create or complete the W&B run of every record in `sweep_dir`; doing it again changes nothing.

    Raises InputError where there is no record, OSError or W&B's own errors where W&B cannot be written.
    """
    runs_dir = sweep_dir / RUNS_DIR
    run_dirs = sorted(path for path in runs_dir.iterdir() if (path / SPEC_FILE).exists()) if runs_dir.is_dir() else []
    if not run_dirs:
        raise InputError(f"{sweep_dir} holds no records to mirror ({RUNS_DIR}/RUN_ID/{SPEC_FILE})")
    plan = _plan(sweep_dir)
    result = SyncResult([], [], [], [], destination)
    for run_dir in run_dirs:
        if is_held(run_dir):
            result.active.append(run_dir.name)
            continue
        try:
            record = read_record(run_dir)
        except InputError as error:
            result.damaged.append(str(error))
            continue
        status = record.status["status"]
        if _mark_covers(_read_mark(run_dir), destination, len(record.rows), status):
            result.current.append(record.run_id)
            continue
        run = _WandbRun(destination, plan.get(record.run_id) or PlannedRun(record.spec, Source(), Execution()), run_dir)
        for row in record.rows:
            run.log(row)
        run.finish(status)
        result.written.append(record.run_id)
        say(f"{record.run_id}  {status}  {len(record.rows)} evaluations")
    return result


def step_rows(run_dir: Path) -> list[dict[str, float]]:
    """The training steps of a run as W&B rows: each step's loss, learning rate and gradient norm, or their means over
    at most STEP_ROWS equal buckets; `train/step` is the last step of the bucket, counted from 1."""
    columns = {name: values.astype(float) for name, values in read_steps(run_dir).items()}
    count = len(columns["train_loss"])
    edges = np.unique(np.linspace(0, count, min(count, STEP_ROWS) + 1).astype(int))
    return [
        {"train/step": int(high)}
        | {f"train/{name.removeprefix('train_')}": float(values[low:high].mean()) for name, values in columns.items()}
        for low, high in itertools.pairwise(edges)
    ]


class _WandbRun:
    """One W&B run being written from row 0; rows that the server already has are left out."""

    def __init__(self, destination: Destination, planned: PlannedRun, run_dir: Path) -> None:
        import wandb

        sweep_dir = run_dir.parent.parent
        self.destination, self.run_dir, self.rows = destination, run_dir, 0
        folder = sweep_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if destination.mode == "offline":  # an offline run cannot be continued, so an earlier part is written anew
            for old in folder.glob(f"offline-run-*-{planned.run_id}"):
                shutil.rmtree(old)
        self.run = wandb.init(
            project=destination.project,
            entity=destination.entity,
            id=planned.run_id,
            name=run_name(planned.spec),
            group=sweep_dir.resolve().name,
            mode=destination.mode,  # type: ignore[arg-type]
            resume="allow" if destination.mode == "online" else None,
            dir=str(sweep_dir),
            config=planned.to_dict(),
            settings=_settings(wandb),
        )
        self.run.define_metric("tokens", hidden=True)
        self.run.define_metric("test_loss", step_metric="tokens")
        self.run.define_metric("train/*", step_metric="train/step")

    def log(self, row: dict[str, Any]) -> None:
        """Write the next row of the history."""
        if self.rows >= self.run.starting_step:
            self.run.log(row, step=self.rows)
        self.rows += 1

    def finish(self, status: str) -> None:
        """Write the training steps of a finished run, the summary, and the mark of how much has been mirrored."""
        evaluations = self.rows
        record = read_record(self.run_dir)
        if status in FINISHED:
            for row in step_rows(self.run_dir):
                self.log(row)
        self.run.config.update({"manifest": record.manifest})
        self.run.summary.update({**run_row(record), **record.status, "status": status})
        self.run.finish(exit_code=0 if status == "done" else 1)
        mark = {
            "project": self.destination.project,
            "entity": self.destination.entity,
            "mode": self.destination.mode,
            "evaluations": evaluations,
            "status": status,
        }
        _mark_path(self.run_dir).write_text(json.dumps(mark))


def run_name(spec: RunSpec) -> str:
    """A W&B display name; nothing ever parses it."""
    return (
        f"{spec.model.n_layer}x{spec.model.d_model} B={spec.batch_tokens} lr={spec.optimizer.lr:.3g} seed={spec.seed}"
    )


def _settings(wandb: Any) -> Any:
    wanted = {
        "silent": True,
        "console": "off",
        "disable_git": True,  # the manifest has it
        "save_code": False,
        "x_disable_stats": True,
        "init_timeout": NETWORK_SECONDS,
        "finish_timeout": NETWORK_SECONDS,
    }
    known = wandb.Settings.model_fields  # finish_timeout is younger than the oldest W&B admitted
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _mark_path(run_dir: Path) -> Path:
    return run_dir.parent.parent / FOLDER / f"{run_dir.name}.json"


def _read_mark(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_mark_path(run_dir).read_text()))
    except (OSError, ValueError):
        return {}


def _mark_covers(mark: dict[str, Any], destination: Destination, evaluations: int, status: str) -> bool:
    """Whether the mirror that `mark` describes is as complete as the record, and where it is wanted."""
    return (
        (mark.get("project"), mark.get("entity")) == (destination.project, destination.entity)
        and (mark.get("evaluations"), mark.get("status")) == (evaluations, status)
        and (mark.get("mode") == "online" or destination.mode == "offline")
    )


def _plan(sweep_dir: Path) -> dict[str, PlannedRun]:
    from sweep.plan import read_plan

    path = sweep_dir / PLAN_FILE
    return {planned.run_id: planned for planned in read_plan(path)} if path.exists() else {}
