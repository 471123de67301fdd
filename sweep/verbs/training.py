"""Verbs that plan and train: plan, sweep, train."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.schema import InputError
from sweep.verbs.common import RunsFailed, composed, composing_parser, counted, print_table, quoted, write_json

if TYPE_CHECKING:
    from sweep.launch.freeze import Frozen
    from sweep.launch.local import Outcome


def plan(argv: list[str]) -> int:
    """Print the plan of a sweep and its totals, and write them as JSON."""
    parser = composing_parser(
        "plan", "Print the runs of a sweep and what they cost. Trains nothing.", "isoloss plan experiment=quick"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write runs and totals as JSON (- for stdout)")
    parser.add_argument("--measure", action="store_true", help="train a few steps of each shape, for time estimates")
    options = parser.parse_intermixed_args(argv)
    config = composed(options)
    if config is None:
        return 0
    from sweep.config import read_config
    from sweep.estimate import launch_workers, machine
    from sweep.launcher import SlurmLauncher
    from sweep.plan import duration, plan_sweep, plan_table, plan_totals
    from sweep.verbs import cluster

    runs = plan_sweep(config)
    if options.measure and config["launcher"]["name"] == "slurm":
        raise InputError("--measure times this machine, not the cluster's nodes; set launcher.flops_per_s instead")
    if options.measure:
        from sweep.launch.local import devices
        from sweep.measure import measure

        measure(runs, devices(config["launcher"]["device"])[0], report=lambda line: print(line, file=sys.stderr))
        runs = plan_sweep(config)
    launcher = read_config(config).launcher
    totals = plan_totals(runs, launch_workers(launcher), machine(launcher))
    if options.json:
        write_json(options.json, {"runs": [run.to_dict() for run in runs], "totals": totals})
        if str(options.json) == "-":
            return 0
    print_table(plan_table(runs))
    together = f" ({totals['stacked_runs']} in {counted(totals['stacks'], 'stack')})" if totals["stacks"] else ""
    print(
        f"\n{counted(totals['runs'], 'run')}{together}, {totals['tokens']:.3g} tokens, {totals['flops']:.3g} FLOP = "
        f"{totals['pf_days']:.3g} PF-days; about {duration(totals['wall_seconds'])} on "
        f"{counted(totals['workers'], 'worker')} "
        f"({totals['time_basis']})"
    )
    if isinstance(launcher, SlurmLauncher) and runs:
        print(cluster.planned_jobs(runs, launcher))
    return 0


def sweep(argv: list[str]) -> int:
    """Train what is left of a sweep, or submit it."""
    options = composing_parser(
        "sweep",
        "Train every run of a sweep. The same command again skips what is done, resumes what was cut off and retries\n"
        "what failed; sweep_dir=DIR chooses where it is kept. With launcher=slurm jobs do it, and the command returns\n"
        "once they are submitted (launcher.wait=true: stays until they have ended).",
        "isoloss sweep experiment=quick sweep_dir=sweeps/first launcher.workers=2",
    ).parse_intermixed_args(argv)
    config = composed(options)
    if config is None:
        return 0
    from sweep.config import read_config
    from sweep.launch.freeze import freeze
    from sweep.launch.local import devices, launch
    from sweep.launch.slurm.snapshot import check_committed
    from sweep.launcher import SlurmLauncher
    from sweep.lease import hold
    from sweep.plan import plan_sweep
    from sweep.verbs import cluster

    typed = read_config(config)
    launcher = typed.launcher
    if isinstance(launcher, SlurmLauncher):
        check_committed(launcher.allow_dirty)  # before anything is written
    else:
        # What torch finds, not what the files of a driver suggest, decides the micro-batches.
        config["launcher"]["device"] = devices(launcher.device)[0].partition(":")[0]
    runs = plan_sweep(config)
    sweep_dir = Path(config["sweep_dir"]).expanduser()
    with hold(sweep_dir, "sweep"):
        frozen = freeze(sweep_dir, runs, progress=sys.stdout.isatty(), stack=launcher.stack == "on")
        if isinstance(launcher, SlurmLauncher):
            cluster.sweep(frozen, launcher, typed.tracking)
        else:
            outcome = launch(frozen, launcher, typed.tracking)
    if isinstance(launcher, SlurmLauncher):
        if not launcher.wait:
            return 0
        outcome = cluster.wait(frozen)
    return _conclude(frozen, outcome)


def _conclude(frozen: Frozen, outcome: Outcome) -> int:
    """Print how a sweep has ended. Raises RunsFailed where something is left to do."""
    counts = ", ".join(f"{count} {status}" for status, count in outcome.statuses.items())
    print(f"{frozen.sweep_dir}: {counts}")
    if outcome.hopeless:
        raise RunsFailed(
            f"{outcome.hopeless}; the others wait for the same command, isoloss status "
            f"{quoted(frozen.sweep_dir)} lists them"
        )
    if outcome.stopped:
        raise RunsFailed("stopped; the same command goes on with the sweep")
    if outcome.errors:
        run_id, reason = next(iter(outcome.errors.items()))
        raise RunsFailed(
            f"{len(outcome.errors)} of {len(frozen.runs)} runs failed, the first {run_id}: {reason}; the same command "
            f"tries them again, isoloss status {quoted(frozen.sweep_dir)} lists them"
        )
    if outcome.statuses["cancelled"]:
        raise RunsFailed(f"{outcome.statuses['cancelled']} runs cancelled; the same command submits them again")
    print(f"next: isoloss analyze {quoted(frozen.sweep_dir)}")
    return 0


TRAIN_HELP = """\
usage: isoloss train [key=value ...] [-m] [--cfg job] [--config-dir DIR]

Train one run, or resume it, into SWEEP_DIR/runs/RUN_ID (sweep_dir=DIR, default sweeps/train). This is an ordinary Hydra
application: -m runs every combination of comma-separated values, hydra/launcher=... chooses who runs them, --cfg job
prints the configuration, --hydra-help lists the rest.

example:
  isoloss train model.shape=2x32 batch_tokens=2048 horizon.steps=200
  isoloss train -m model.shape=1x16,2x32 batch_tokens=1024,4096 horizon.tokens=1e6
"""


def train(argv: list[str]) -> int:
    """Train one run, as a Hydra application."""
    if "-h" in argv or "--help" in argv:
        print(TRAIN_HELP, end="")
        return 0
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from sweep.compose import compose
    from sweep.launch import single

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of Hydra's own printing and exit
    earlier, sys.argv = sys.argv, ["isoloss train", *argv]
    try:
        single.main()
    except SystemExit as end:
        return int(end.code or 0)
    except (HydraException, OmegaConfBaseException) as error:
        if not {"-m", "--multirun"} & set(argv):
            compose("train", [argument for argument in argv if not argument.startswith("-")])  # explains in one line
        raise InputError(f"configuration: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit."):
            raise
        raise RunsFailed(_of_submitit(str(error))) from error
    finally:
        sys.argv = earlier
    return 0


def _of_submitit(error: str) -> str:
    """One line from what Hydra's launcher raises for a job without a result: which one, and what it printed last."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = [line for line in lines[1:] if line.startswith("isoloss: ")]
    return ": ".join(lines[:1] + [line.removeprefix("isoloss: ") for line in said[-1:]])
