"""What `isoloss resubmit` submits, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig, launcher_config
from sweep.launch.slurm.submission import read_submissions
from sweep.launcher import SlurmLauncher
from sweep.schema import InputError
from sweep.spec import build
from sweep.status import SweepStatus


def failed_or_lost(state: SweepStatus) -> list[str]:
    """Runs of the plan to submit again: failed or lost, and in no live job. Raises InputError where SLURM did not say
    which jobs live."""
    if state.slurm_problem is not None:
        raise InputError(state.slurm_problem)
    return [run.run_id for run in state.runs
            if run.planned and run.shown in ("failed", "lost") and run.job and not run.job.live]  # fmt: skip


def last_settings(sweep_dir: Path, overrides: Sequence[str]) -> tuple[SlurmLauncher, TrackingConfig]:
    """Launcher and tracking of the last submission, with `overrides` of the launcher (launcher.key=value). Raises
    InputError where nothing was submitted, or for an override that the launcher does not have."""
    submissions = read_submissions(sweep_dir)
    if not submissions:
        raise InputError(f"no job was ever submitted for {sweep_dir}; isoloss sweep with launcher=slurm submits it")
    settings = submissions[-1].settings
    changed = dict(settings["launcher"])
    for key, value in _changes(overrides):
        if key.startswith("sbatch."):
            changed["sbatch"] = {**(changed["sbatch"] or {}), key.removeprefix("sbatch."): value}
        else:
            changed[key] = value
    launcher = launcher_config(changed)
    assert isinstance(launcher, SlurmLauncher), launcher.name
    return launcher, build(TrackingConfig, settings["tracking"], "tracking")


def _changes(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Keys of the launcher and their new values, from overrides written as for Hydra."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            value = override.value()
        except HydraException as error:
            raise InputError(f"{text} cannot be read: {str(error).splitlines()[0]}") from error
        key = override.key_or_group.removeprefix("launcher.")
        if key in (override.key_or_group, "name") or override.is_delete() or override.is_sweep_override():
            raise InputError(f"{text}: only launcher.KEY=VALUE can be changed; all else is the plan's")
        yield key, value
