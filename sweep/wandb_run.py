"""One W&B run as it is written from a record, and where it goes.

Its history has one row an evaluation, then one row a bucket of training steps, always in the same order: so row i is
the same whoever writes it, and a run that was cut off is completed by writing the rows it lacks.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweep.collect import run_row
from sweep.config import TrackingConfig
from sweep.launch.freeze import FINISHED
from sweep.record import read_record, read_steps
from sweep.schema import STEPS_FILE, InputError
from sweep.spec import PlannedRun, RunSpec

FOLDER = "wandb"  # in the sweep directory: W&B's own files and the marks of what has been mirrored
STEP_ROWS = 1000  # of a run's training losses; longer runs are averaged over that many equal buckets
CONNECT_SECONDS = 5.0  # to wait for an answer of W&B's server
NETWORK_SECONDS = 60.0  # to wait for W&B at the start and at the end of a run that is online


@dataclass(frozen=True)
class Destination:
    """Where a mirror goes."""

    project: str
    entity: str | None
    mode: str  # online or offline

    @classmethod
    def from_config(cls, tracking: TrackingConfig) -> Destination:
        """From the group `tracking`; mode auto is online where the user has a key and W&B answers, else offline."""
        auto = "online" if has_key() and answers() else "offline"
        return cls(tracking.project, tracking.entity, auto if tracking.mode == "auto" else tracking.mode)


def has_key() -> bool:
    """Whether the user is logged in to W&B (environment or netrc). The key itself is never read into the record."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    host = _server().hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def answers() -> bool:
    """Whether W&B's server can be reached at all, so that a cluster's node need not wait for it at every run."""
    server = _server()
    if server.scheme in urllib.request.getproxies():
        return True  # only the proxy knows
    try:
        with socket.create_connection((server.hostname or "", server.port or 443), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _server() -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


class WandbRun:
    """One W&B run being written from row 0; rows that the server already has are left out."""

    def __init__(self, destination: Destination, planned: PlannedRun, run_dir: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
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
            allow_val_change=True,  # where a resumed run is computed otherwise than it began
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

    def finish(self, status: str) -> str | None:
        """Write the training steps of a finished run, the summary, and the mark of how much has been mirrored. Returns
        what of the record cannot be read and is left out; such a mirror is not marked."""
        evaluations, problem = self.rows, None
        record = read_record(self.run_dir)
        # A run without memory for its first steps has none to read.
        if status == "done" or (status in FINISHED and (self.run_dir / STEPS_FILE).exists()):
            try:
                for row in step_rows(self.run_dir):
                    self.log(row)
            except InputError as error:
                problem = str(error)
        self.run.config.update({"manifest": record.manifest})
        self.run.summary.update({**run_row(record), **record.status, "status": status})
        self.run.finish(exit_code=0 if status == "done" else 1)
        if problem:
            return problem
        mark = {
            "project": self.destination.project,
            "entity": self.destination.entity,
            "mode": self.destination.mode,
            "evaluations": evaluations,
            "status": status,
        }
        _mark_file(self.run_dir).write_text(json.dumps(mark))
        return None


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
        "reinit": "create_new",  # beside the other runs of its stack
        "init_timeout": NETWORK_SECONDS,
        "finish_timeout": NETWORK_SECONDS,
        "finish_timeout_raises": True,  # so that the run is not marked as mirrored
    }
    known = wandb.Settings.model_fields  # finish_timeout is younger than the oldest W&B admitted
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _mark_file(run_dir: Path) -> Path:
    return run_dir.parent.parent / FOLDER / f"{run_dir.name}.json"


def is_mirrored(run_dir: Path, destination: Destination, evaluations: int, status: str) -> bool:
    """Whether the mirror written last is as complete as the record, and where it is wanted; online serves for both."""
    try:
        mark = json.loads(_mark_file(run_dir).read_text())
    except (OSError, ValueError):
        return False
    return (
        (mark["project"], mark["entity"]) == (destination.project, destination.entity)
        and (mark["evaluations"], mark["status"]) == (evaluations, status)
        and (mark["mode"] == "online" or destination.mode == "offline")
    )


def step_rows(run_dir: Path) -> list[dict[str, float]]:
    """The training steps of a run as W&B rows: each step's loss, learning rate and gradient norm, or their means over
    at most STEP_ROWS equal buckets; `train/step` is the last step of the bucket, counted from 1. Raises InputError
    where steps.npz is missing or damaged."""
    columns = {name: values.astype(float) for name, values in read_steps(run_dir).items()}
    count = len(columns["train_loss"])
    edges = np.unique(np.linspace(0, count, min(count, STEP_ROWS) + 1).astype(int))
    return [
        {"train/step": int(high)}
        | {f"train/{name.removeprefix('train_')}": float(values[low:high].mean()) for name, values in columns.items()}
        for low, high in itertools.pairwise(edges)
    ]
