"""The verbs of `isoloss` that make and look after records, one function each.

They import what they need when called, so that `--help`, plan and status answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from sweep.schema import InputError


class RunsFailed(Exception):
    """The command did its work, but runs failed. The message is for the user; exit code 1."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, verb: str, description: str, example: str) -> None:
        super().__init__(
            f"isoloss {verb}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _composing_parser(verb: str, description: str, example: str) -> _Parser:
    parser = _Parser(verb, description, example)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="Hydra overrides; groups: experiment, model, ..."
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own configuration groups")
    return parser


def _composed(options: argparse.Namespace) -> dict[str, Any] | None:
    """The composed sweep configuration, or None where it was only to be printed."""
    from sweep.compose import compose

    config = compose("sweep", options.overrides, options.config_dir)
    if not options.cfg:
        return config
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
    return None


def plan(argv: list[str]) -> int:
    """Print the plan of a sweep and its totals, and write them as JSON."""
    parser = _composing_parser(
        "plan", "Print the runs of a sweep and what they cost. Trains nothing.", "isoloss plan experiment=quick"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write runs and totals as JSON (- for stdout)")
    parser.add_argument("--measure", action="store_true", help="train a few steps of each shape, for time estimates")
    options = parser.parse_intermixed_args(argv)
    config = _composed(options)
    if config is None:
        return 0
    from sweep.config import SlurmLauncher, read_config
    from sweep.estimate import machine, plan_workers
    from sweep.plan import duration, plan_sweep, plan_table, plan_totals

    runs = plan_sweep(config)
    if options.measure and config["launcher"]["name"] == "slurm":
        raise InputError("--measure times this machine, not the cluster's nodes; set launcher.flops_per_s instead")
    if options.measure:
        from sweep.launch.local import devices
        from sweep.measure import measure

        measure(runs, devices(config["launcher"]["device"])[0], report=lambda line: print(line, file=sys.stderr))
        runs = plan_sweep(config)
    launcher = read_config(config).launcher
    if isinstance(launcher, SlurmLauncher):
        workers = launcher.parallel
    else:
        workers = plan_workers(launcher.device, launcher.threads) if launcher.workers == "auto" else launcher.workers
    totals = plan_totals(runs, workers, machine(launcher))
    if options.json:
        _write_json(options.json, {"runs": [run.to_dict() for run in runs], "totals": totals})
        if str(options.json) == "-":
            return 0
    _print_table(plan_table(runs))
    print(
        f"\n{totals['runs']} runs, {totals['tokens']:.3g} tokens, {totals['flops']:.3g} FLOP = "
        f"{totals['pf_days']:.3g} PF-days; about {duration(totals['wall_seconds'])} on {totals['workers']} workers "
        f"({totals['time_basis']})"
    )
    return 0


def sweep(argv: list[str]) -> int:
    """Train what is left of a sweep."""
    options = _composing_parser(
        "sweep",
        "Train every run of a sweep. The same command again skips what is done, resumes what was cut off and retries\n"
        "what failed; sweep_dir=DIR chooses where it is kept.",
        "isoloss sweep experiment=quick sweep_dir=sweeps/first launcher.workers=2",
    ).parse_intermixed_args(argv)
    config = _composed(options)
    if config is None:
        return 0
    from sweep.config import SlurmLauncher, read_config
    from sweep.launch.freeze import freeze
    from sweep.launch.local import devices, launch
    from sweep.lease import hold
    from sweep.plan import plan_sweep

    typed = read_config(config)
    launcher = typed.launcher
    if isinstance(launcher, SlurmLauncher):
        raise InputError("launcher=slurm can be planned, but not yet submitted")
    # What torch finds, not what the files of a driver suggest, decides the micro-batches.
    config["launcher"]["device"] = devices(launcher.device)[0].partition(":")[0]
    runs = plan_sweep(config)
    sweep_dir = Path(config["sweep_dir"]).expanduser()
    with hold(sweep_dir, "sweep"):
        frozen = freeze(sweep_dir, runs, progress=sys.stdout.isatty())
        outcome = launch(frozen, launcher, typed.tracking)
    counts = ", ".join(f"{count} {status}" for status, count in outcome.statuses.items())
    print(f"{sweep_dir}: {counts}")
    if outcome.stopped:
        raise RunsFailed("stopped; the same command goes on with the sweep")
    if outcome.errors:
        run_id, reason = next(iter(outcome.errors.items()))
        raise RunsFailed(
            f"{len(outcome.errors)} of {len(frozen.runs)} runs failed, the first {run_id}: {reason}; the same command "
            f"tries them again, isoloss status {sweep_dir} lists them"
        )
    print(f"next: isoloss analyze {sweep_dir}")
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
    finally:
        sys.argv = earlier
    return 0


def status(argv: list[str]) -> int:
    """Print how far a sweep is."""
    parser = _Parser("status", "Expected runs against present records, with failures and their reason.",
                     "isoloss status sweeps/quick")  # fmt: skip
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON (- for stdout)")
    parser.add_argument("--all", action="store_true", help="list every run of a large sweep, also done and waiting")
    options = parser.parse_args(argv)
    from sweep.status import sweep_status
    from sweep.status_table import remarks, status_line, status_table

    state = sweep_status(options.sweep_dir)
    if options.json:
        _write_json(options.json, state.to_dict())
    if str(options.json) != "-":
        _print_table(status_table(state, options.all))
        print(status_line(state))
        for line in remarks(state, options.all):
            print(line)
    return 0


def collect(argv: list[str]) -> int:
    """Write a sweep's tables."""
    parser = _Parser("collect", "Write DIR/runs.parquet and DIR/curves.parquet from the records in DIR.",
                     "isoloss collect sweeps/quick")  # fmt: skip
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    collect_records(parser.parse_args(argv).sweep_dir)
    return 0


def collect_records(sweep_dir: Path) -> None:
    """Write the tables of a sweep directory and say what they hold and what had to be set aside."""
    from sweep.collect import collect

    for path in collect(sweep_dir):
        print(path)


def sync(argv: list[str]) -> int:
    """Mirror a sweep's records to W&B."""
    parser = _Parser(
        "sync",
        "Create or complete one Weights & Biases run for every record in DIR; doing it again changes nothing.\n"
        "Without a key the runs are written offline to DIR/wandb, from where `wandb sync` uploads them.",
        "isoloss sync sweeps/quick --project scaling",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("--project", default="isoloss", help="W&B project (default: isoloss)")
    parser.add_argument("--entity", help="W&B user or team (default: the key's own)")
    parser.add_argument("--mode", choices=["auto", "online", "offline"], default="auto",
                        help="auto: online where there is a key, else offline")  # fmt: skip
    options = parser.parse_args(argv)
    from sweep.config import TrackingConfig
    from sweep.tracking import Destination, sync

    tracking = TrackingConfig("wandb", options.project, options.entity, options.mode)
    result = sync(options.sweep_dir, Destination.from_config(tracking))
    for problem in result.damaged:
        print(f"set aside: {problem}", file=sys.stderr)
    print(
        f"{result.destination.project} ({result.destination.mode}): {len(result.written)} runs written, "
        f"{len(result.current)} were complete, {len(result.active)} are being trained now"
    )
    if result.written and result.destination.mode == "offline":
        print(f"upload with: wandb sync {options.sweep_dir}/wandb/offline-run-*")
    return 0


def _print_table(table: Any) -> None:
    from rich.console import Console

    # Without a terminal the width is the table's own, so that no column is cut.
    Console(width=None if sys.stdout.isatty() else 300).print(table)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
