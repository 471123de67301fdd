"""The argument parser of the analysis verbs."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sweep.schema import InputError


class Parser(argparse.ArgumentParser):
    """Bad arguments are unusable input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('isoloss ')}: {message}; see `{self.prog} --help`")
