"""Submitting small sweeps from a test, without the start-up of a command."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from drills.cluster import Cluster, wait_until
from drills.lab import Lab, Result, Sweep

from sweep.compose import compose
from sweep.config import read_config
from sweep.launch.freeze import Frozen, freeze
from sweep.launch.slurm.submission import Submission, job_folder
from sweep.launch.slurm.submit import submit
from sweep.launcher import SlurmLauncher
from sweep.lease import hold
from sweep.plan import plan_sweep

# CPU jobs of runs that take seconds, so that each is a job of its own unless pack_minutes says otherwise.
SLURM = (
    "launcher=slurm",
    "launcher.gpus_per_run=0",
    "launcher.allow_dirty=true",
    "launcher.pack_minutes=0.0001",
    "launcher.signal_seconds=30",
)


class Launched(Sweep):
    """A sweep, as in the drills, that this process submits."""

    def submit(self, *overrides: str) -> Submission | None:
        """Submit what is left of it; `overrides` are those of the launcher."""
        given = ["experiment=drill", *SLURM, *self.science, *self.how, *overrides]
        config = compose("sweep", given, self.lab.configs)
        typed = read_config(config)
        assert isinstance(typed.launcher, SlurmLauncher)
        with self._cache(), hold(self.directory, "sweep"):
            self.frozen: Frozen = freeze(self.directory, plan_sweep(config), stack=typed.launcher.stack == "on")
            made = submit(self.frozen, self.frozen.unfinished(), typed.launcher, typed.tracking, sys.argv)
        if made:
            self.submission = made
        return made

    def rows(self) -> int:
        """Evaluations recorded by runs that are not finished."""
        return sum(path.read_bytes().count(b"\n") for path in self.directory.glob("runs/*/metrics.jsonl"))

    def wait(self, cluster: Cluster, seconds: float = 120) -> None:
        """Until SLURM has nothing more to do for the last submission."""
        jobs = [element.job_id for element in self.submission.elements]

        def ended() -> bool:
            return not any(cluster.queued(job) for job in jobs)

        def stays_ended() -> bool:  # between the loss of a node and its return to the queue a job seems to have ended
            if ended():
                time.sleep(2)
            return ended()

        def accounted() -> bool:  # which comes later
            return all(cluster.attempts(job)[-1:] not in ([], ["PENDING"], ["RUNNING"]) for job in jobs)

        wait_until(stays_ended, f"end of jobs {jobs}", seconds)
        wait_until(accounted, f"accounts of jobs {jobs}")

    def equals_reference(self) -> None:
        """Assert that every run is done and equals the undisturbed one bit for bit, with no line twice."""
        result = Result("", injected=1)
        self.compare(result)
        assert result.passed, f"{result}\n{self.logs()}"

    def logs(self) -> str:
        """What the jobs have printed."""
        folder = job_folder(self.directory, self.submission.number)
        return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))

    @contextlib.contextmanager
    def _cache(self) -> Iterator[None]:
        before = os.environ.get("ISOLOSS_CACHE")
        os.environ["ISOLOSS_CACHE"] = self.lab.env["ISOLOSS_CACHE"]
        try:
            yield
        finally:
            del os.environ["ISOLOSS_CACHE"]
            if before is not None:
                os.environ["ISOLOSS_CACHE"] = before


def slurm(*command: str) -> str:
    """What a command of SLURM prints; fails where that fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lab_in(folder: Path) -> Lab:
    """The drills' laboratory in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Lab(folder)
