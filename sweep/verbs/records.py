"""Verbs that look at records: status, collect, sync."""

from __future__ import annotations

import sys
from pathlib import Path

from sweep.schema import InputError
from sweep.verbs.common import Parser, print_table, write_json


def status(argv: list[str]) -> int:
    """Print how far a sweep is."""
    parser = Parser("status", "Expected runs against present records, with failures and their reason.",
                     "isoloss status sweeps/quick")  # fmt: skip
    parser.add_argument("sweep_dir", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON (- for stdout)")
    parser.add_argument("--all", action="store_true", help="list every run of a large sweep, also done and waiting")
    options = parser.parse_args(argv)
    from sweep.status import sweep_status
    from sweep.status_table import remarks, status_line, status_table, tracebacks

    state = sweep_status(options.sweep_dir)
    if options.json:
        write_json(options.json, state.to_dict())
    if str(options.json) != "-":
        print_table(status_table(state, options.all))
        for text in tracebacks(state):
            print(text)
        print(status_line(state))
        for line in remarks(state, options.all):
            print(line)
    return 0


def collect(argv: list[str]) -> int:
    """Write a sweep's tables."""
    parser = Parser("collect", "Write DIR/runs.parquet and DIR/curves.parquet from the records in DIR.",
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
    parser = Parser(
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
    import wandb

    try:
        result = sync(options.sweep_dir, Destination.from_config(tracking))
    except wandb.Error as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"W&B: {reason}; try again later, or with --mode offline") from error
    for problem in result.damaged:
        print(f"set aside: {problem}", file=sys.stderr)
    print(
        f"{result.destination.project} ({result.destination.mode}): {len(result.written)} runs written, "
        f"{len(result.current)} were complete, {len(result.active)} are being trained now"
    )
    if result.written and result.destination.mode == "offline":
        print(f"upload with: wandb sync {options.sweep_dir}/wandb/offline-run-*")
    return 0
