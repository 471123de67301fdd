"""The scheduler's signals to a job, which may come in the middle of its runs, told apart.

Within `train_runs` a SIGTERM asks for checkpoints at the next step. So that is what both become.
"""

from __future__ import annotations

import os
import signal
import threading

NUDGE_SECONDS = 1.0  # between two SIGTERMs to runs that may not have been there yet to hear the one before


class Interruptions:
    """Listens from its making on, in place of submitit's handlers; make it in the main thread.

    requeue     SIGUSR2 has come: the time limit is near, or a job of higher priority wants the node
    terminate   SIGTERM has come while no run was being trained
    training    to be set while runs are: both are passed on to them
    """

    def __init__(self) -> None:
        self.requeue = self.terminate = self.training = False
        signal.signal(signal.SIGUSR2, self._on_requeue)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        self._end = threading.Event()
        threading.Thread(target=self._watch, name="interruptions", daemon=True).start()

    def ignore(self) -> None:
        """Hear nothing more: the process is about to end, with an exit code that says all."""
        self._end.set()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _on_requeue(self, *_: object) -> None:
        self.requeue = True
        if self.training:
            signal.raise_signal(signal.SIGTERM)

    def _on_terminate(self, *_: object) -> None:
        self.terminate = self.terminate or not self.requeue

    def _watch(self) -> None:
        while not self._end.wait(NUDGE_SECONDS):
            if self.training and (self.requeue or self.terminate):
                os.kill(os.getpid(), signal.SIGTERM)
