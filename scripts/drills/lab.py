"""Where drills run: small real sweeps through the real command, undisturbed references, and how they compare."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sweep.record import read_record, read_status, run_dirs

# Two runs of some seconds: real text (parts of the standard library), checkpoints and evaluations close together, so
# that faults fall between and into them. Each by itself: a run that fails in a stack goes on alone, which is the same
# but for the order of additions.
EXPERIMENT = """\
# @package _global_
defaults:
  - override /grid: single
  - override /data: text
  - override /tracking: none
name: drill
model: {n_ctx: 32, d_head: 8, shape: 1x16}
data: {name: stdlib-parts, test_tokens: 2048, max_epochs: 1000, files: [%s]}
schedule: {warmup_steps: 5}
batch_tokens: 256
horizon: {steps: 3000}
optimizer: {lr: 4.0e-3}
launcher: {device: cpu, stack: "off"}
execution: {eval_points_per_decade: 12, eval_tail: 4, checkpoint_seconds: 0.3}
grid:
  blocks:
    run: {product: {seed: [0, 1]}}
"""
LOCAL = ("launcher=local", "launcher.workers=1")
# Four runs of two batches that are one stack.
STACK = ("launcher.stack=on", "launcher.workers=1", "+grid.blocks.run.product.batch_tokens=[256,512]")


@dataclass
class Result:
    """What a drill has found. Rows are the evaluations in metrics.jsonl, compared with an undisturbed run's."""

    fault: str
    injected: int = 0
    runs: int = 0
    finished: int = 0
    lost: int = 0  # rows of the undisturbed run that are missing
    duplicated: int = 0  # rows of a step that is there already
    differing: int = 0  # rows, and series of all steps, that are not equal bit for bit, the clock aside
    wrong: list[str] = field(default_factory=list)  # what else should have been otherwise
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, changed or otherwise wrong, and the fault did happen."""
        whole = self.finished == self.runs > 0 and self.injected > 0
        return whole and not (self.lost or self.duplicated or self.differing or self.wrong)

    def expect(self, condition: object, what: str) -> None:
        """Note `what` as wrong unless `condition`."""
        if not condition:
            self.wrong.append(what)


class Lab:
    """A folder with the experiment, a cache of its own and the references."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs = folder / "conf"
        (self.configs / "experiment").mkdir(parents=True, exist_ok=True)
        library = Path(json.__file__).parent.parent
        files = ", ".join(f"'{library / package}/*.py'" for package in ("json", "email"))
        (self.configs / "experiment" / "drill.yaml").write_text(EXPERIMENT % files)
        self.references: dict[tuple[str, ...], Sweep] = {}

    @property
    def env(self) -> dict[str, str]:
        """The environment of the commands: this process's, which may have come to know a cluster, without W&B's."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        return env | {"ISOLOSS_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    def reference(self, science: tuple[str, ...]) -> Sweep:
        """The sweep with these overrides, trained without any fault; once."""
        if science not in self.references:
            name = hashlib.sha256(repr(science).encode()).hexdigest()[:8]
            sweep = Sweep(self, f"reference-{name}", science)
            code, output = sweep.run("launcher=local")
            if code != 0:
                raise RuntimeError(f"the undisturbed sweep failed: {output}")
            self.references[science] = sweep
        return self.references[science]


class Sweep:
    """One sweep directory. `science` are the overrides that its reference shares, `how` those that it does not."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        science: tuple[str, ...] = (),
        how: tuple[str, ...] = (),
        directory: Path | None = None,
    ) -> None:
        self.lab, self.science, self.how = lab, science, how
        self.directory = directory or lab.folder / name
        self.log = lab.folder / f"{name}.log"
        self.python = sys.executable

    def start(self, *overrides: str, **env: str) -> subprocess.Popen[bytes]:
        """Start the command that trains the sweep; what it prints is added to the log."""
        command = [self.python, "-m", "sweep.cli", "sweep", "--config-dir", str(self.lab.configs)]
        command += ["experiment=drill", f"sweep_dir={self.directory}", *self.science, *self.how, *overrides]
        with self.log.open("a") as log:
            return subprocess.Popen(command, cwd=self.lab.folder, env=self.lab.env | env, stdout=log, stderr=log)

    def run(self, *overrides: str, **env: str) -> tuple[int, str]:
        """Run the command to its end: exit code, and what it has printed."""
        before = self.log.stat().st_size if self.log.exists() else 0
        code = self.start(*overrides, **env).wait()
        return code, self.log.read_text()[before:]

    def verb(self, verb: str, *arguments: str) -> str:
        """What `isoloss VERB` prints of the sweep."""
        command = [sys.executable, "-m", "sweep.cli", verb, str(self.directory), *arguments]
        done = subprocess.run(command, cwd=self.lab.folder, env=self.lab.env, capture_output=True, text=True)
        return done.stdout + done.stderr

    def runs(self) -> list[Path]:
        """Run directories that hold a record."""
        return run_dirs(self.directory)

    def status(self, run_dir: Path) -> dict[str, Any]:
        """Content of a run's status.json; empty before there is one."""
        return read_status(run_dir) or {}

    def statuses(self) -> list[str]:
        """The statuses of the runs so far."""
        return [self.status(run).get("status", "planned") for run in self.runs()]

    def attempts(self) -> int:
        """Attempts begun so far, of all runs."""
        return sum(self.status(run).get("attempts", 0) for run in self.runs())

    def rows(self) -> int:
        """Evaluations recorded so far, of all runs."""
        return sum(path.read_bytes().count(b"\n") for path in self.directory.glob("runs/*/metrics.jsonl"))

    def compare(self, result: Result) -> None:
        """Add to `result` how the runs of this sweep differ from those of its reference."""
        reference = self.lab.reference(self.science)
        for undisturbed in reference.runs():
            result.runs += 1
            run = self.directory / "runs" / undisturbed.name
            status = self.status(run).get("status", "missing")
            if status != "done":
                result.wrong.append(f"{run} is {status}: {self.status(run).get('error')}")
                continue
            result.finished += 1
            read_record(run)  # raises where it is damaged
            compare_runs(undisturbed, run, result)

    def workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The training processes of a running local sweep."""
        found = []
        for line in _children(process.pid):
            with contextlib.suppress(OSError):
                if b"--multiprocessing-fork" in Path(f"/proc/{line}/cmdline").read_bytes():
                    found.append(line)
        return found


def process_status(pid: int) -> dict[str, int]:
    """The numbers in /proc/PID/status (memory in kB); empty where the process is gone."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.split() and value.split()[0].isdigit():
                found[name] = int(value.split()[0])
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in rows]


def compare_runs(undisturbed: Path, run: Path, result: Result) -> None:
    """Add to `result` how a run directory differs from an undisturbed one: the lines as they stand in the files, since
    reading a record would hide what is double."""
    expected = {row["step"]: row for row in _rows(undisturbed)}
    rows = _rows(run)
    counts = Counter(row["step"] for row in rows)
    result.lost += len(expected.keys() - counts.keys())
    result.duplicated += sum(count - 1 for count in counts.values())
    result.differing += sum(row != expected.get(row["step"]) for row in rows)
    result.differing += [row["step"] for row in rows] != sorted(row["step"] for row in rows)
    with np.load(undisturbed / "steps.npz") as one, np.load(run / "steps.npz") as other:
        result.differing += sum(not np.array_equal(one[name], other[name]) for name in one.files)
