"""Runs are packed into jobs: nothing lost, nothing twice, no group over the limit, the longest first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.launch.slurm.packing import pack, split

LENGTHS = st.lists(st.floats(0.0, 5000.0), max_size=60)


@given(LENGTHS, st.floats(1.0, 2000.0))
def test_every_run_once_within_the_limit_longest_first(lengths: list[float], limit: float) -> None:
    groups = pack(range(len(lengths)), lengths.__getitem__, limit)
    sums = [sum(lengths[i] for i in group) for group in groups]
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(total <= limit * (1 + 1e-9) or len(group) == 1 for total, group in zip(sums, groups, strict=True))
    assert sums == sorted(sums, reverse=True)
    for group in groups:
        assert [lengths[i] for i in group] == sorted((lengths[i] for i in group), reverse=True)
    if sum(lengths) <= limit and lengths:
        assert len(groups) == 1


def test_long_runs_stand_alone_and_equals_keep_their_order() -> None:
    lengths = {"a": 10.0, "b": 3600.0, "c": 10.0, "d": 900.0, "e": 10.0, "f": 900.0}
    assert pack(lengths, lengths.__getitem__, 1800.0) == [["b"], ["d", "f"], ["a", "c", "e"]]
    assert pack(lengths, lengths.__getitem__, 20.0) == [["b"], ["d"], ["f"], ["a", "c"], ["e"]]


@pytest.mark.parametrize(("count", "size", "sizes"), [(0, 3, []), (3, 3, [3]), (4, 3, [2, 2]), (7, 3, [2, 2, 3])])
def test_arrays_hold_no_more_than_the_cluster_takes(count: int, size: int, sizes: list[int]) -> None:
    parts = split(range(count), size)
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == list(range(count))
