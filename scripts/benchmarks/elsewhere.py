"""An arm in a process of its own: isoloss's arms set how their process keeps memory, which others do not have."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.speed import Arm, plain, trainer
from sweep.corpus import open_corpus
from sweep.spec import PlannedRun


class Elsewhere:
    """A process on the CPU that holds one arm at a time, and works only while it is asked to."""

    def __init__(self, name: str, threads: int, folder: Path) -> None:
        """`name` is the arm's: plain or trainer."""
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, threads, folder), daemon=True)
        self._process.start()
        other.close()

    def arm(self, planned: PlannedRun, corpus: Path) -> Arm:
        """A new arm in the place of the one before; `corpus` is the folder of the token files."""
        tokens = self._ask("make", planned, corpus)
        return Arm(tokens, lambda steps: float(self._ask("advance", steps)), lambda: float(self._ask("loss")))

    def _ask(self, *request: Any) -> Any:
        """What the process answers; raises what was raised there, and EOFError where it has died."""
        self._pipe.send(request)
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join(10)


def _serve(pipe: Connection, name: str, threads: int, folder: Path) -> None:
    torch.set_num_threads(threads)
    arm: Arm | None = None
    while True:
        try:
            what, *given = pipe.recv()
        except EOFError:
            return
        try:
            if what == "make":
                planned, path = given
                corpus, arm = open_corpus(path), None  # the one before goes first
                arm = plain(planned, corpus, "cpu") if name == "plain" else trainer(planned, corpus, "cpu", folder)
                pipe.send(arm.tokens)
            else:
                assert arm is not None, what
                pipe.send(arm.advance(*given) if what == "advance" else arm.loss())
        except Exception as error:
            pipe.send(error)
