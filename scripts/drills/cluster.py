"""The SLURM of scripts/slurm_local.sh, from Python: start it, ask it, and break it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "slurm_local.sh"
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")


def missing() -> str | None:
    """Why the cluster cannot run on this host, or None."""
    if os.getuid() != 0:
        return "the local SLURM needs root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if absent := [name for name in DAEMONS if shutil.which(name, path=path) is None]:
        return f"SLURM is not installed ({', '.join(absent)}); scripts/slurm_local.sh install, as root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "this host does not permit namespaces (unshare --uts --mount)"
    return None


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true value of `condition()`. Raises TimeoutError where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return value


class Cluster:
    """The local cluster. While it is up, SLURM_CONF of this process and its children names it."""

    def __init__(self, **settings: str) -> None:
        """`settings` are those of the script by their last names: GPUS="1", ARRAY="8"."""
        for name, value in settings.items():
            os.environ[f"ISOLOSS_SLURM_{name}"] = value
        folder = os.environ.get("ISOLOSS_SLURM") or f"{tempfile.gettempdir()}/isoloss-slurm"
        os.environ["ISOLOSS_SLURM"] = folder
        self.folder = Path(folder)
        self.conf = self.folder / "slurm.conf"
        self.was_up = (self.folder / "nodes").exists()

    def up(self) -> None:
        """Start it, or what has died of it, and bring back all its nodes."""
        self._script("up")
        os.environ["SLURM_CONF"] = str(self.conf)

    def down(self) -> None:
        """Cancel all jobs and stop it."""
        self._script("down")
        os.environ.pop("SLURM_CONF", None)

    def ask(self, *command: str) -> list[str]:
        """The lines that a SLURM command prints."""
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.splitlines()

    def queued(self, job: str) -> str | None:
        """State of a job, or of an array element such as 12_3, that SLURM still has to do; None where there is none.
        Of a whole array, the state of its first element."""
        lines = subprocess.run(["squeue", "-h", "-r", "-j", job, "-o", "%T"], capture_output=True, text=True)
        return next(iter(lines.stdout.split()), None)

    def attempts(self, job: str) -> list[str]:
        """States of every start of a job, the first first, by the accounting: ["NODE_FAIL", "COMPLETED"]."""
        lines = self.ask("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "State")
        return [line.split()[0] for line in lines]

    def node_of(self, job: str) -> str:
        """The node that a job, or an array element, runs on, once it does."""
        ask = ("squeue", "-h", "-j", job, "-t", "RUNNING", "-o", "%N")
        return str(wait_until(lambda: next(iter(self.ask(*ask)), None), f"start of job {job}"))

    def set_node(self, node: str, state: str) -> None:
        """Set a node `down` (its jobs fail with it), to `drain` or to `resume`."""
        self.ask("scontrol", "update", f"nodename={node}", f"state={state}", "reason=drill")

    def kill_slurmd(self, node: str) -> None:
        """Cut a node off: its slurmd dies, what it has started lives on. `up` brings it back."""
        os.kill(int((self.folder / "run" / f"{node}.pid").read_text()), signal.SIGKILL)

    def _script(self, verb: str) -> None:
        # Daemons inherit the output, so it goes to a file: a pipe would stay open.
        with tempfile.TemporaryFile("w+") as output:
            if subprocess.run([SCRIPT, verb], stdout=output, stderr=output).returncode:
                output.seek(0)
                raise RuntimeError(f"{SCRIPT.name} {verb}: {output.read().strip()}")
