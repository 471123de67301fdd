"""What `isoloss resubmit` submits, and with which settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.config import SlurmLauncher, TrackingConfig, launcher_config
from sweep.launch.slurm.queue import Queue
from sweep.launch.slurm.submission import read_submissions
from sweep.schema import InputError
from sweep.spec import build
from sweep.status import SweepStatus


def failed_or_lost(state: SweepStatus) -> list[str]:
    """Runs of the plan to submit again: failed or lost, and in no live job. Raises InputError where SLURM did not say
    which jobs live."""
    Queue(problem=state.slurm_problem).live()
    return [run.run_id for run in state.runs
            if run.planned and run.shown in ("failed", "lost") and run.job and not run.job.live]  # fmt: skip


def last_settings(sweep_dir: Path, overrides: Sequence[str]) -> tuple[SlurmLauncher, TrackingConfig]:
    """Launcher and tracking of the last submission, with `overrides` of the launcher (launcher.key=value). Raises
    InputError where nothing was submitted, or for an override that the launcher does not have."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    submissions = read_submissions(sweep_dir)
    if not submissions:
        raise InputError(f"no job was ever submitted for {sweep_dir}; isoloss sweep ... launcher=slurm submits it")
    settings = submissions[-1].settings
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.startswith("launcher.") or key == "launcher.name":
            raise InputError(f"{override}: only launcher.KEY=VALUE can be changed; all else is the plan's")
    try:
        merged: Any = OmegaConf.to_container(
            OmegaConf.merge(OmegaConf.create({"launcher": settings["launcher"]}), OmegaConf.from_dotlist([*overrides]))
        )
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error
    launcher = launcher_config(merged["launcher"])
    assert isinstance(launcher, SlurmLauncher), launcher.name
    return launcher, build(TrackingConfig, settings["tracking"], "tracking")
