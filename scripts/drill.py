"""Every fault that a sweep must survive, done to real sweeps; each finished run is compared with an undisturbed one.

    python scripts/drill.py [--only NAME ...] [--json FILE] [--kills 50] [--tasks 500]

Prints a line a drill and, at the end, the table of faults: times injected, runs finished, rows lost and duplicated.
Exit code 0 where every run was finished with the rows of the undisturbed run, bit for bit, and nothing else was wrong.
Drills on a SLURM and a full disk need root and are left out elsewhere. `--only scale` is never part of the others: 500
array tasks keep two cores busy for half an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from drills import disk, local, slurm, wheelhouse
from drills.cluster import Cluster, missing
from drills.lab import Lab, Result

SCALE = "scale"
COLUMNS = ("fault", "injected", "runs", "finished", "rows lost", "duplicated", "differing", "wrong", "seconds")


@lru_cache(maxsize=1)
def cluster() -> Cluster:
    """The cluster of the drills, made when the first of them asks."""
    return Cluster()


def drills(arguments: argparse.Namespace) -> dict[str, tuple[Callable[[Lab], Result], Callable[[], str | None]]]:
    """The drills by name, each with the function that says why it cannot run here, or None."""

    def anywhere() -> str | None:
        return None

    def slurm_here(drill: Callable[..., Result], **options: int) -> Callable[[Lab], Result]:
        def run(lab: Lab) -> Result:
            try:
                return drill(lab, cluster(), **options)
            finally:
                slurm.cancel_jobs(lab)

        return run

    def root() -> str | None:
        return None if os.getuid() == 0 else "needs root"

    return {
        "kills": (partial(local.kills, times=arguments.kills), anywhere),
        "stack-cuts": (local.stack_cuts, anywhere),
        "truncated-line": (local.truncated_line, anywhere),
        "corrupted-checkpoint": (local.corrupted_checkpoint, anywhere),
        "two-sweeps": (local.two_sweeps, anywhere),
        "zombies": (local.zombies, anywhere),
        "clock": (local.clock_jumps, anywhere),
        "no-locks": (local.no_locks, anywhere),
        "memory": (local.out_of_memory, anywhere),
        "always-fails": (local.always_fails, anywhere),
        "all-alike": (local.all_fail_alike, anywhere),
        "disk-checkpoint": (disk.full_at_checkpoint, root),
        "disk-log": (disk.full_at_log, root),
        "wheelhouse": (wheelhouse.offline_install, anywhere),
        "time-limit": (slurm_here(slurm.time_limit), missing),
        "preemption": (slurm_here(slurm.preemption), missing),
        "requeue": (slurm_here(slurm.requeue), missing),
        "node-down": (slurm_here(slurm.node_down), missing),
        "lost-slurmd": (slurm_here(slurm.lost_slurmd), missing),
        "one-element": (slurm_here(slurm.error_in_one_element), missing),
        SCALE: (slurm_here(slurm.many_tasks, tasks=arguments.tasks), missing),
    }


def table(results: list[Result]) -> str:
    """The results as columns, and what was wrong below."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in results:
        numbers = (one.injected, one.runs, one.finished, one.lost, one.duplicated, one.differing, len(one.wrong))
        rows.append((one.fault, *map(str, numbers), f"{one.seconds:.0f}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, *(f"{one.fault}: {text}" for one in results for text in one.wrong)])


def main() -> int:
    """Run the drills asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these drills instead of all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--kills", type=int, default=50, help="how often a training process is killed")
    parser.add_argument("--tasks", type=int, default=500, help="array tasks of the drill `scale`")
    arguments = parser.parse_args()
    known = drills(arguments)
    if unknown := set(arguments.only or ()) - known.keys():
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    results = []
    with tempfile.TemporaryDirectory(prefix="isoloss-drill-") as folder:
        lab = Lab(Path(folder))
        for name in arguments.only or [name for name in known if name != SCALE]:
            drill, reason_not = known[name]
            if reason := reason_not():
                print(f"{name}: left out, {reason}", flush=True)
                continue
            started = time.monotonic()
            try:
                result = drill(lab)
            except Exception:
                result = Result(name, wrong=[traceback.format_exc()])
            result.seconds = time.monotonic() - started
            results.append(result)
            print(f"{name}: {'as it should be' if result.passed else 'WRONG'}", flush=True)
    if cluster.cache_info().currsize and not cluster().was_up:
        cluster().down()
    print(f"\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(one) for one in results], indent=1) + "\n")
    return 0 if all(one.passed for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
