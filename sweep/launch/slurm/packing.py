"""Which runs share a job, and which jobs an array: short runs one after another, so that imports and waiting do not
dominate; jobs of about one length side by side, so that their time limit fits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from sweep.spec import PlannedRun
from sweep.stacking import stacks

T = TypeVar("T")

BAND = 4  # between the longest and the shortest time limit in one array


def pack(items: Iterable[T], seconds: Callable[[T], float], limit: float) -> list[list[T]]:
    """Group `items` so that each group's `seconds` stay within `limit`, where a single item does not exceed it already.

    Items within a group and groups by their sums come the longest first, so that a job's long runs do not start last;
    equals stay in the order given. Neighbours in length share a group.
    """
    groups: list[list[T]] = []
    filled = limit
    for item in sorted(items, key=seconds, reverse=True):
        if groups and filled + seconds(item) <= limit:
            groups[-1].append(item)
            filled += seconds(item)
        else:
            groups.append([item])
            filled = seconds(item)
    return sorted(groups, key=lambda group: sum(map(seconds, group)), reverse=True)


def pack_runs(runs: Sequence[PlannedRun], seconds: Mapping[str, float], limit: float) -> list[list[list[PlannedRun]]]:
    """The jobs of `runs`, of so many `seconds` by run_id, for each priority, the lowest first: `pack` of stacks, whose
    runs stay in one job, one after another."""
    levels: dict[int, list[list[PlannedRun]]] = {}
    for members in stacks(runs):
        levels.setdefault(min(run.priority for run in members), []).append(members)

    def together(members: Sequence[PlannedRun]) -> float:
        return sum(seconds[run.run_id] for run in members)

    return [
        [[run for members in job for run in members] for job in pack(level, together, limit)]
        for _, level in sorted(levels.items())
    ]


def arrays(items: Sequence[T], minutes: Callable[[T], int], size: int) -> list[Sequence[T]]:
    """`items`, the longest first, as job arrays of at most `size`, whose elements have one time limit: `minutes` of the
    first. No item is asked more than BAND times its own, since SLURM fills gaps with what claims to be short; arrays of
    one limit are dealt in turn, so that they end together."""
    bands: list[list[T]] = []
    for item in items:
        if not bands or minutes(bands[-1][0]) > BAND * minutes(item):
            bands.append([])
        bands[-1].append(item)
    return [band[i::parts] for band in bands for parts in [-(-len(band) // size)] for i in range(parts)]


def shares(parallel: int, sizes: Sequence[int]) -> list[int]:
    """How many elements of each array of `sizes` elements may run at a time, `parallel` in all: by size, 1 at least."""
    found = [1] * len(sizes)
    for _ in range(parallel - len(sizes)):
        most = max(range(len(sizes)), key=lambda i: sizes[i] / found[i])
        if found[most] >= sizes[most]:
            break
        found[most] += 1
    return found
