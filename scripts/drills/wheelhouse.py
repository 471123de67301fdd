"""The drill of a cluster without internet: what scripts/wheelhouse.sh has fetched is all that an installation needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from drills.lab import LOCAL, Lab, Result, Sweep

SCRIPT = Path(__file__).parents[1] / "wheelhouse.sh"


def offline_install(lab: Lab) -> Result:
    """Fetch the wheels, install from them alone into a new environment, plan the smoke sweep and train one there."""
    result, wheels, venv = Result("no internet"), lab.folder / "wheelhouse", lab.folder / "offline"
    _run(result, [str(SCRIPT), str(wheels)], dict(os.environ))
    # pip as on a machine of its own: no index, and none of this machine's settings
    bare = {key: value for key, value in lab.env.items() if not key.startswith(("PIP_", "PYTHON"))}
    bare |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    _run(result, [sys.executable, "-m", "venv", "--without-pip", str(venv)], bare)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python")]
    _run(result, [*pip, "install", "--quiet", "--no-index", "--find-links", str(wheels), "isoloss[slurm-hydra]"], bare)
    result.injected = 1
    _run(result, [str(venv / "bin" / "isoloss"), "--version"], bare, lab.folder)
    _run(result, [str(venv / "bin" / "isoloss"), "plan", "experiment=smoke"], bare, lab.folder)
    sweep = Sweep(lab, "offline-sweep")
    sweep.python = str(venv / "bin" / "python")
    code, output = sweep.run(*LOCAL)
    result.expect(code == 0, f"the sweep ended with {code}: {output[-300:]}")
    sweep.compare(result)
    return result


def _run(result: Result, command: list[str], env: dict[str, str], folder: Path | None = None) -> None:
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    result.expect(done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-500:]}")
