"""Ways to train a list of runs: the sweep command with its groups, or a process per run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_memory
from sweep.plan import read_plan, write_plan
from sweep.record import read_status
from sweep.schema import METRICS_FILE, PLAN_FILE, RUNS_DIR
from sweep.spec import PlannedRun
from sweep.stacking import expected_cost, stacks

ARMS = ("stacked", "single", "plain")
COMMAND = "import sys; from sweep.cli import main; sys.exit(main())"
ONE_RUN = Path(__file__).with_name("one_run.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclasses.dataclass(frozen=True)
class Work:
    """A list of runs, the same one for every arm."""

    name: str
    suffixes: tuple[str, ...]  # of the ratios that it gives
    command: list[str]  # arguments of `isoloss sweep` that ask for these runs
    runs: list[PlannedRun]  # each alone, with the hash of its text
    corpus: Path
    whole: float  # tokens of the whole horizons, as a multiple of those of `runs`
    workers: int  # processes at once


@dataclasses.dataclass(frozen=True)
class Done:
    """One arm's pass over the runs."""

    wall_s: float
    startup_s: float  # of all processes: from their start to the first step, and their end
    compute_s: float  # of all processes: training, evaluations, checkpoints
    idle_s: float  # of processes that wait for the last one, and between groups
    cpu_s: float  # of all processes, whatever else the machine does
    peak_gib: float | None  # resident memory of all processes at once, shared pages counted in each
    losses: dict[str, float]  # the last test loss by run_id


def train(arm: str, work: Work, folder: Path) -> Done:
    """Train `work` in the new folder `folder`. Ends the benchmark where a run does not reach its end."""
    folder.mkdir()
    before = _cpu_seconds()
    done = _stacked(work, folder) if arm == "stacked" else _processes(arm, work, folder)
    return dataclasses.replace(done, cpu_s=_cpu_seconds() - before)


def _cpu_seconds() -> float:
    """Of the processes that this one and its own have waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _stacked(work: Work, folder: Path) -> Done:
    """The command itself, with its launcher and workers."""
    with peak_memory() as peak:
        began, clock = time.time(), time.perf_counter()
        _finish([sys.executable, "-c", COMMAND, "sweep", *work.command, f"sweep_dir={folder}"])
        wall = time.perf_counter() - clock
    intervals: list[tuple[float, float]] = []  # start and length of each group
    losses = {}
    for group in stacks(read_plan(folder / PLAN_FILE)):
        ends, lengths = [], []
        for run in group:
            run_dir = folder / RUNS_DIR / run.run_id
            status = read_status(run_dir) or {}
            if status.get("status") != "done":
                sys.exit(f"run {run.run_id} of the stacked sweep ended as {status.get('status')}")
            ends.append(status["updated"])
            lengths.append(status["wall_s"])  # its part of what they took together
            losses[run.run_id] = _last_row(run_dir / METRICS_FILE)["test_loss"]
        intervals.append((max(ends) - sum(lengths), sum(lengths)))
    starts = sorted(start for start, _ in intervals)[: work.workers]  # the first group of each worker
    startup, compute = sum(start - began for start in starts), sum(length for _, length in intervals)
    return Done(wall, startup, compute, len(starts) * wall - startup - compute, math.nan, peak[0], losses)


def _processes(arm: str, work: Work, folder: Path) -> Done:
    """One process per run, the longest first."""
    write_plan(folder / PLAN_FILE, work.runs)
    (folder / RUNS_DIR).mkdir()

    def one(run: PlannedRun) -> tuple[float, dict[str, Any]]:
        began = time.perf_counter()
        _finish([sys.executable, str(ONE_RUN), arm, str(folder), run.run_id, str(work.corpus)])
        seconds, record = time.perf_counter() - began, folder / RUNS_DIR / run.run_id
        return seconds, _last_row(record / METRICS_FILE if arm == "single" else record)

    runs = sorted(work.runs, key=expected_cost, reverse=True)
    with peak_memory() as peak, ThreadPoolExecutor(work.workers) as pool:
        began = time.perf_counter()
        found = list(pool.map(one, runs))
        wall = time.perf_counter() - began
    for run, (_, row) in zip(runs, found, strict=True):
        if row["step"] != run.spec.steps:
            sys.exit(f"run {run.run_id} of arm {arm} ended at step {row['step']} of {run.spec.steps}")
    alive, compute = sum(seconds for seconds, _ in found), sum(row["elapsed_s"] for _, row in found)
    losses = {run.run_id: row["test_loss"] for run, (_, row) in zip(runs, found, strict=True)}
    idle = min(work.workers, len(found)) * wall - alive
    return Done(wall, alive - compute, compute, idle, math.nan, peak[0], losses)


def _finish(argv: list[str]) -> None:
    """Run a command, one thread a process. Ends the benchmark with what it printed where it fails."""
    done = subprocess.run(
        argv, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(argv[2:])} failed:\n{done.stdout[-4000:]}")


def _last_row(metrics: Path) -> dict[str, Any]:
    """The last evaluation of a run."""
    row: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return row
