"""Faults that tests bring about."""

from __future__ import annotations

from pathlib import Path


def fill(folder: Path) -> Path:
    """Write a file until its file system is full; returns it, to be removed."""
    ballast = folder / "ballast"
    try:
        with ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return ballast
