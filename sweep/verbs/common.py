"""What the verbs share: how they read their arguments and print."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from sweep.schema import InputError


class RunsFailed(Exception):
    """The command did its work, but runs failed. The message is for the user; exit code 1."""


class Parser(argparse.ArgumentParser):
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


def composing_parser(verb: str, description: str, example: str) -> Parser:
    """A parser of Hydra overrides."""
    parser = Parser(verb, description, example)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="Hydra overrides; groups: experiment, model, ..."
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own configuration groups")
    return parser


def composed(options: argparse.Namespace) -> dict[str, Any] | None:
    """The composed sweep configuration, or None where it was only to be printed."""
    from sweep.compose import compose

    config = compose("sweep", options.overrides, options.config_dir)
    if not options.cfg:
        return config
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
    return None


def print_table(table: Any) -> None:
    """Print a rich table; without a terminal its width is its own, so that no column is cut."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 300).print(table)


def quoted(path: Path) -> str:
    """`path` as a person may paste it into a shell."""
    return shlex.quote(str(path))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, or to stdout where that is "-"."""
    text = json.dumps(content, indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def counted(number: int, thing: str) -> str:
    """`number` of a thing: 1 run, 2 runs."""
    return f"{number} {thing}{'s' * (number != 1)}"
