"""What may interrupt a job in the middle of a run, told apart: the scheduler's signals and a person's wish.

Within `train_run` a SIGTERM asks for a checkpoint at the next step. So that is what everything here becomes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

LOOK_SECONDS = 5.0  # between two looks at whether the run was cancelled
NUDGE_SECONDS = 1.0  # between two SIGTERMs to a run that may not have been there yet to hear the one before


class Interruptions:
    """Listens from its making on, in place of submitit's handlers; make it in the main thread.

    requeue     SIGUSR2 has come: the time limit is near, or a job of higher priority wants the node
    terminate   SIGTERM has come while no run was being trained
    cancelled   the run being trained is not wanted any more
    """

    def __init__(self) -> None:
        self.requeue = self.terminate = self.cancelled = False
        self._unwanted: Callable[[], bool] | None = None
        self._changing = threading.Lock()  # so that no run is nudged for the one before it
        signal.signal(signal.SIGUSR2, self._on_requeue)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        self._end = threading.Event()
        threading.Thread(target=self._watch, name="interruptions", daemon=True).start()

    def training(self, unwanted: Callable[[], bool] | None) -> None:
        """A run is about to be trained, until `idle`; `unwanted` says whether it is cancelled, where this process is
        the one to ask."""
        with self._changing:
            self.cancelled, self._unwanted = False, unwanted or (lambda: False)

    def idle(self) -> None:
        """No run is being trained."""
        with self._changing:
            self._unwanted = None

    def ignore(self) -> None:
        """Hear nothing more: the process is about to end, with an exit code that says all."""
        self._end.set()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _on_requeue(self, *_: object) -> None:
        self.requeue = True
        if self._unwanted is not None:
            signal.raise_signal(signal.SIGTERM)

    def _on_terminate(self, *_: object) -> None:
        self.terminate = self.terminate or not (self.requeue or self.cancelled)

    def _watch(self) -> None:
        looked = 0.0
        while not self._end.wait(NUDGE_SECONDS):
            looked += NUDGE_SECONDS
            with self._changing:
                if self._unwanted is None:
                    continue
                if looked >= LOOK_SECONDS:
                    looked, self.cancelled = 0.0, self.cancelled or self._unwanted()
                if self.requeue or self.terminate or self.cancelled:
                    os.kill(os.getpid(), signal.SIGTERM)
