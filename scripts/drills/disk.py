"""Drills with a full disk: a small file system in memory, filled to the last byte. They need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from drills.cluster import wait_until
from drills.lab import LOCAL, Lab, Result, Sweep
from drills.local import finish, under_way


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 32 MB in `folder`, for the length of the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill `disk` but for `leave` bytes; returns the file to remove again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def full_at_checkpoint(lab: Lab) -> Result:
    """The disk has no space for a checkpoint, but for a line in the log: a note, and training goes on."""
    result = Result("disk full during a checkpoint")
    with small_disk(lab.folder / "disk-checkpoint") as disk:
        sweep = Sweep(lab, "checkpoint-full", how=("launcher.workers=2",), directory=disk / "sweep")
        process = sweep.start("launcher=local")
        runs = under_way(sweep, process)
        filler = fill(disk, leave=40_000)

        def noted() -> bool:
            return all(sweep.status(run).get("notes") for run in runs) or process.poll() is not None

        wait_until(noted, "notes of checkpoints that failed")
        filler.unlink()
        process.wait()
        for run in runs:
            status = sweep.status(run)
            failed = "checkpoint" in " ".join(status.get("notes", []))
            result.injected += failed
            result.expect(failed, f"{run}: no note of a checkpoint that failed")
            result.expect(status.get("attempts") == 1, f"{run}: {status.get('attempts')} attempts")
        sweep.compare(result)
    return result


def full_at_log(lab: Lab) -> Result:
    """The disk has no byte left for the log: the attempt fails, and says what to do."""
    result = Result("disk full during a log write")
    science = ("execution.eval_points_per_decade=300",)
    with small_disk(lab.folder / "disk-log") as disk:
        sweep = Sweep(lab, "log-full", science, directory=disk / "sweep")
        process = sweep.start(*LOCAL)
        under_way(sweep, process, runs=1)
        filler = fill(disk, leave=0)
        process.wait()
        said = sweep.log.read_text()
        result.injected += 1
        result.expect(process.returncode != 0, "the sweep ended as if nothing had happened")
        result.expect("free some space" in said, f"it does not say what to do: {said[-300:]}")
        filler.unlink()
        finish(sweep, result)
    return result
