"""Running the real command on a small real text, for tests that mirror sweep/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep.compose import compose
from sweep.plan import plan_sweep
from sweep.spec import PlannedRun

# Two runs of a second each: one size, two batches, on the standard library's json and email packages.
TRIAL = """\
# @package _global_
defaults:
  - override /grid: single
  - override /data: text
  - override /tracking: none
name: trial
model: {n_ctx: 16, d_head: 8, shape: 1x8}
data: {name: stdlib-parts, test_tokens: 1024, max_epochs: 20, files: [%s]}
schedule: {warmup_steps: 5}
batch_tokens: 128
horizon: {steps: 30}
optimizer: {lr: 4.0e-3}
launcher: {device: cpu, workers: 1}
execution: {eval_points_per_decade: 3, eval_tail: 1}
grid:
  blocks:
    run: {product: {batch_tokens: [128, 256]}}
"""


class Commands:
    """`isoloss` in a folder of its own, with its own cache and an experiment called `trial`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.configs = folder / "conf"
        (self.configs / "experiment").mkdir(parents=True)
        library = Path(json.__file__).parent.parent
        files = ", ".join(f"'{library / package}/*.py'" for package in ("json", "email"))
        (self.configs / "experiment" / "trial.yaml").write_text(TRIAL % files)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("WANDB")},
            "ISOLOSS_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }

    def sweep_arguments(self, *overrides: str) -> list[str]:
        """Arguments of plan or sweep for the experiment."""
        return ["--config-dir", str(self.configs), "experiment=trial", f"sweep_dir={self.folder / 'out'}", *overrides]

    def plan(self, *overrides: str) -> list[PlannedRun]:
        """The runs of the experiment."""
        return plan_sweep(compose("sweep", ["experiment=trial", *overrides], self.configs))

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start `isoloss ARGUMENTS`."""
        command = [sys.executable, "-m", "sweep.cli", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        """Run `isoloss ARGUMENTS` to its end: exit code, stdout, stderr."""
        return finish(self.start(*arguments, **env))

    def sweep(self, *overrides: str) -> tuple[int, str, str]:
        """Run the experiment's sweep."""
        return self.run("sweep", *self.sweep_arguments(*overrides))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that is about to end."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until `condition()` is true and return it; fails when `process` ends before."""
    deadline = time.monotonic() + 90
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, finish(process)
        time.sleep(0.02)
    return value
