"""Launcher for one machine: worker processes fed with stacks of runs, the longest first.

A run's end is read from the record, never from a worker's exit code. A worker that dies fails the runs it had and is
replaced; the sweep goes on. Nothing here knows what a run does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from sweep.config import TrackingConfig
from sweep.estimate import available_cores, plan_device
from sweep.launch import worker
from sweep.launch.attempt import Ended, Evaluated, Job, Task
from sweep.launch.failures import common_failure
from sweep.launch.freeze import Frozen, recorded_status
from sweep.launch.progress import Progress
from sweep.launch.worker import Ready
from sweep.launcher import LocalLauncher
from sweep.lease import LeaseLost, hold, is_held
from sweep.record import RunRecord
from sweep.schema import InputError
from sweep.spec import PlannedRun
from sweep.stacking import stacks

START_ATTEMPTS = 3  # workers in a row that may die before they ask for their first run


@dataclass
class Outcome:
    """What became of the runs of a sweep. `statuses` counts all runs of the plan."""

    statuses: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)  # run_id -> last error of a failed run
    stopped: bool = False
    hopeless: str | None = None  # why the sweep has stopped by itself


def devices(asked: str) -> list[str]:
    """Torch devices that `launcher.device` means on this machine. Raises InputError where there is none such."""
    if plan_device(asked) == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return [f"cuda:{i}" for i in range(count)]
    if asked == "auto":  # a driver without a device, or a torch without CUDA
        return ["cpu"]
    raise InputError(f"launcher.device={asked}: torch finds no CUDA device here; use auto or cpu")


def launch(frozen: Frozen, launcher: LocalLauncher, tracking: TrackingConfig) -> Outcome:
    """Train every unfinished run of the sweep. Returns when all have ended or the sweep was stopped by a signal."""
    left = frozen.unfinished()
    groups = stacks(left)
    names = devices(launcher.device)
    on_cpu = names == ["cpu"]
    if launcher.workers == "auto":
        most = max(1, available_cores() // launcher.threads) if on_cpu else len(names)
    else:
        most = launcher.workers
    count = min(most, len(groups))
    finished = len(frozen.runs) - len(left)
    with Progress(frozen, left) as progress:
        said = f"{frozen.sweep_dir}: {len(frozen.runs)} runs" + f", {finished} of them finished" * bool(finished)
        if sizes := [len(group) for group in groups if len(group) > 1]:
            said += f" ({sum(sizes)} in {len(sizes)} stack{'s' * (len(sizes) > 1)})"
        progress.say(said)
        if left:
            per = f"{launcher.threads} thread{'s' * (launcher.threads > 1)} each"
            progress.say(f"{count} worker{'s' * (count > 1)} on {', '.join(names)}" + (f", {per}" * on_cpu))
        return Pool(frozen, launcher, names, tracking, progress).run(groups, most)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    device: str
    tasks: dict[str, Task] = field(default_factory=dict)  # run_id -> a run it was given that has not ended
    asked: bool = False  # has asked for runs, so its start has worked


class Pool:
    """Worker processes and the queue of groups they empty."""

    def __init__(
        self, frozen: Frozen, launcher: LocalLauncher, names: list[str], tracking: TrackingConfig, progress: Progress
    ) -> None:
        self.frozen, self.launcher, self.names = frozen, launcher, names
        self.tracking, self.progress = tracking, progress
        self.queue: deque[list[PlannedRun]] = deque()
        self.workers: list[_Worker] = []
        self.most = 0  # workers at a time
        self.failures: Counter[str] = Counter()
        self.results: list[tuple[str, str | None]] = []  # status and error of the runs that have ended for good
        self.lost_starts = 0
        self.stopping = 0  # signals so far
        self.outcome = Outcome()

    def run(self, groups: list[list[PlannedRun]], most: int) -> Outcome:
        """Train the runs of `groups` on at most `most` workers."""
        self.queue.extend(groups)
        self.most = most
        with self._signals():
            try:
                self._start_workers()
                while self.workers:
                    self._step()
            finally:
                for lost in self.workers:
                    lost.process.kill()
        self.outcome.statuses.update(status_of(self.frozen, run, self.outcome) for run in self.frozen.runs)
        return self.outcome

    def _step(self) -> None:
        """Handle what the workers have sent, and those that have died."""
        if self.stopping and not self.outcome.stopped:
            self.outcome.stopped = True
            self.progress.say("stopping: the runs write a checkpoint (once more to stop at once)")
        by_pipe = {w.pipe: w for w in self.workers}
        for pipe in wait(list(by_pipe), timeout=0.5):
            self._receive(by_pipe[pipe])  # type: ignore[index]
        self._start_workers()

    def _receive(self, sender: _Worker) -> None:
        try:
            message = sender.pipe.recv()
        except (EOFError, OSError):
            self._gone(sender)
            return
        if isinstance(message, Ready):
            sender.asked, self.lost_starts = True, 0
            self._give(sender)
        elif isinstance(message, Evaluated):
            self.progress.evaluated(sender.tasks[message.run_id].planned, message.row)
        elif isinstance(message, Ended):
            self._ended(sender.tasks.pop(message.run_id).planned, message)

    def _give(self, idle: _Worker) -> None:
        job = None
        if self.queue and not self.stopping:
            group = self.queue.popleft()
            tasks = tuple(Task(run, self.frozen.run_dir(run), self.failures[run.run_id]) for run in group)
            idle.tasks = {task.run_id: task for task in tasks}
            job = Job(tasks, self.frozen.corpus(group[0]))
        with contextlib.suppress(OSError):  # it has died meanwhile; its pipe says so next
            idle.pipe.send(job)

    def _ended(self, planned: PlannedRun, ended: Ended) -> None:
        if ended.status == "running" and self.stopping:
            return
        if ended.status == "running" and ended.error:  # somebody else trains it now
            self.outcome.errors[planned.run_id] = ended.error
            return
        if ended.status == "running":
            ended = Ended(planned.run_id, "failed", "its worker was told to stop, but not by this sweep")
        if ended.status == "failed":
            self.failures[planned.run_id] += 1
            if ended.retry and self.failures[planned.run_id] <= self.launcher.retries and not self.stopping:
                self._try_again(planned)
                self.progress.say(f"run {planned.run_id} failed and is tried again: {ended.error}")
                return
            self.outcome.errors[planned.run_id] = ended.error or "unknown"
        self.progress.ended(planned, ended.status, ended.error)
        self.results.append((ended.status, ended.error))
        if not self.stopping and (reason := common_failure(self.results, self.launcher.stop_after)):
            self.outcome.hopeless = reason
            self._stop()

    def _try_again(self, planned: PlannedRun) -> None:
        """Queue a run that has failed by itself: it may be what has failed the others of its stack."""
        if any(status != "failed" for status, _ in self.results):
            self.queue.append([planned])
        else:  # nothing has worked so far: whether it can is seen soonest so
            self.queue.appendleft([planned])

    def _gone(self, lost: _Worker) -> None:
        """A worker's pipe has closed: it has ended, or it was killed together with its runs."""
        lost.process.join()
        lost.pipe.close()
        self.workers.remove(lost)
        code = lost.process.exitcode or 0
        error = f"worker killed by signal {-code}" if code < 0 else f"worker ended with exit code {code}"
        for task in lost.tasks.values() if not self.stopping else ():
            self._ended(task.planned, buried(task, error))
        if not lost.asked:
            self.lost_starts += 1
            if self.lost_starts >= START_ATTEMPTS and not self.stopping:
                raise RuntimeError(f"{self.lost_starts} workers ended at their start (exit code {code}); see above")

    def _start_workers(self) -> None:
        """Start the workers that the queue lacks, each on the device that has the fewest."""
        idle = sum(not w.tasks for w in self.workers)
        wanted = 0 if self.stopping else min(len(self.queue) - idle, self.most - len(self.workers))
        for _ in range(wanted):
            load = Counter(w.device for w in self.workers)
            self._start(min(self.names, key=load.__getitem__))

    def _start(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main, args=(theirs, device, self.launcher.threads, self.tracking), daemon=False
        )
        process.start()
        theirs.close()  # so that the worker's death closes the pipe
        self.workers.append(_Worker(process, ours, device))

    def _stop(self) -> None:
        """Ask the workers for a checkpoint and their end; the second time, end them."""
        self.stopping += 1
        for w in self.workers:
            if self.stopping == 1:
                w.process.terminate()
            else:
                w.process.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._stop()

        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def buried(task: Task, error: str) -> Ended:
    """How a run of a worker that has died has ended: failed with `error`, which its record says from now on, unless it
    was finished or somebody else trains it."""
    try:
        with hold(task.run_dir, "run") as lease:
            record = RunRecord(task.run_dir, lease)
            if finished := record.adopt():
                return Ended(task.run_id, finished)
            record.fail(error)
    except (OSError, InputError, LeaseLost):  # the record cannot say so; the sweep does
        pass
    return Ended(task.run_id, "failed", error)


def status_of(frozen: Frozen, planned: PlannedRun, outcome: Outcome) -> str:
    """A run's status now, when the sweep has ended: failed where this sweep saw it fail (even if its record could not
    say so), interrupted where it is recorded as running and nobody trains it, else as recorded."""
    run_dir = frozen.run_dir(planned)
    status = recorded_status(run_dir)
    if status == "running" and is_held(run_dir):
        return status
    if planned.run_id in outcome.errors:
        return "failed"
    return "interrupted" if status == "running" else status
