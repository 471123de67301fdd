"""One run, through hydra.main: so `-m` and Hydra's own launchers work on it.

The record goes to SWEEP_DIR/runs/RUN_ID like a sweep's, so several runs of one folder can be collected and analysed.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sweep.compose import packaged_configs, settle
from sweep.config import TrackingConfig, read_config
from sweep.launch.attempt import Ended, Evaluated, Job, Task, train_job
from sweep.launch.freeze import as_begun, has_result, on_text, recorded_status
from sweep.launch.local import devices
from sweep.launcher import SlurmLauncher
from sweep.plan import plan_one
from sweep.schema import RUNS_DIR, InputError
from sweep.spec import PlannedRun
from sweep.world import World, join


class RunFailed(Exception):
    """A run has failed; its record and the message say why."""


@hydra.main(version_base="1.3", config_path=str(packaged_configs()), config_name="train")
def main(config: DictConfig) -> float:
    """Train the one run of `config` and return its last test loss, for Hydra's optimising sweepers.

    What goes wrong is said in one line; it leaves as SystemExit, to which Hydra adds nothing.
    """
    from hydra.core.hydra_config import HydraConfig

    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        return train_one(settle(plain, HydraConfig.get().overrides.task))
    except (InputError, RunFailed) as error:
        if os.environ.get("ISOLOSS_TRACEBACK"):
            raise
        print(f"isoloss: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from error


def train_one(config: dict[str, Any]) -> float:
    """Train the one run of a composed configuration, or resume it; returns its last test loss in nats per token, NaN
    where there is none. Several processes, started by torchrun or srun, train it together. Raises InputError for
    unusable input and RunFailed where the run failed."""
    from sweep.stored import last_evaluation

    typed = read_config(config)
    if isinstance(typed.launcher, SlurmLauncher):
        raise InputError(
            "launcher=slurm submits sweeps, not isoloss train; use isoloss sweep, or for single runs Hydra's own "
            "launcher: isoloss train -m hydra/launcher=submitit_slurm ..."
        )
    device = devices(typed.launcher.device)[0]
    config["launcher"]["device"] = device.partition(":")[0]  # what the plan's micro-batch is for
    planned = plan_one(config)
    sweep_dir = Path(config["sweep_dir"]).expanduser()
    run_dir = sweep_dir / RUNS_DIR / planned.run_id
    with join() as world:
        if world.first(lambda: has_result(run_dir)):
            status = recorded_status(run_dir)
        else:
            status = _train(planned, sweep_dir, device, typed.tracking, world)
        loss = (last_evaluation(run_dir) or {}).get("test_loss", math.nan)
        if world.rank == 0:
            shown, hint = ("interrupted", "; the same command goes on with it") if status == "running" else (status, "")
            print(f"{planned.run_id}  {shown}  test loss {loss:.4f} nats/token  {run_dir}{hint}", flush=True)
    return float(loss)


def _train(planned: PlannedRun, sweep_dir: Path, device: str, tracking: TrackingConfig, world: World) -> str:
    from sweep.tracking import Mirror

    run_dir = sweep_dir / RUNS_DIR / planned.run_id
    [planned], corpora = world.first(lambda: on_text(sweep_dir, [as_begun(planned, run_dir)], progress=True))
    job = Job((Task(planned, run_dir),), corpora[planned.data_hash or ""])
    (ended,) = train_job(job, device, Mirror(tracking), _show, world=world)
    if ended.status == "failed":
        raise RunFailed(ended.error) if ended.retry else InputError(ended.error)
    return ended.status


def _show(message: Evaluated | Ended) -> None:
    if isinstance(message, Evaluated):
        row = message.row
        print(f"step {row['step']:>8}  tokens {row['tokens']:>12.0f}  test loss {row['test_loss']:.4f}", flush=True)
