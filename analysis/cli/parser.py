"""The argument parser of the analysis verbs, and the values that several of them take."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sweep.schema import InputError

CONVENTIONS = ("kaplan", "with_head", "total", "chinchilla")  # of `analysis.tables.conventions`, without its imports


class Parser(argparse.ArgumentParser):
    """Bad arguments are unusable input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('isoloss ')}: {message}; see `{self.prog} --help`")


def count(text: str) -> int:
    """A whole number, at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def device(name: str) -> str:
    """The torch device that `--device` asks for."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return name
