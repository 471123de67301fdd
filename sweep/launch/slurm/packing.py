"""Which runs share a job: short ones one after another, so that imports and waiting do not dominate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


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


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """`items` in consecutive parts of at most `size`, as even as can be."""
    parts = -(-len(items) // size)
    return [items[len(items) * i // parts : len(items) * (i + 1) // parts] for i in range(parts)]
