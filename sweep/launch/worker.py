"""A worker process: imports the training code once, then trains one job after another from its launcher's pipe."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection

from sweep.config import TrackingConfig
from sweep.launch.attempt import Ended, Evaluated, train_job


@dataclass(frozen=True)
class Ready:
    """Worker to launcher: imports are done, or all runs of the job before have ended."""


def main(pipe: Connection, device: str, threads: int, tracking: TrackingConfig) -> None:
    """Train the jobs from `pipe` on `device` until None arrives, a run on a GPU fails, or the launcher is gone."""
    _follow_launcher()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        os.environ[name] = "false" if name.startswith("TOKENIZERS") else str(threads)
    gc.disable()  # nothing of the imports is garbage; looking for some is a tenth of their time
    import sweep.train  # noqa: F401  (seconds of imports, before the first job is asked for)
    from sweep.tracking import Mirror

    gc.freeze()
    gc.enable()
    mirror = Mirror(tracking)
    with contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(Ready())
        while (job := pipe.recv()) is not None:
            statuses = {ended.status for ended in train_job(job, device, mirror, partial(_send, pipe))}
            if "running" in statuses or ("failed" in statuses and device != "cpu"):
                break  # a stopped sweep wants no further run; an error may have left a GPU unusable to this process
            pipe.send(Ready())


def _send(pipe: Connection, message: Evaluated | Ended) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone; _follow_launcher stops the runs
        pipe.send(message)


def _follow_launcher() -> None:
    """Leave Ctrl-C to the launcher, which asks for a checkpoint with SIGTERM; ask for it ourselves if it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = parent_process()
    assert launcher is not None, "a worker is started by a launcher"

    def wait() -> None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
