"""Runs are packed into jobs: nothing lost, nothing twice, no group over the limit, the longest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from sweep.launch.slurm.packing import BAND, arrays, pack, pack_runs, shares
from sweep.spec import PlannedRun

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


@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 20))
def test_arrays_hold_every_job_once_with_limits_that_fit(minutes: list[int], size: int) -> None:
    longest_first = sorted(range(len(minutes)), key=minutes.__getitem__, reverse=True)
    found = arrays(longest_first, minutes.__getitem__, size)
    assert sorted(i for array in found for i in array) == list(range(len(minutes)))
    for array in found:
        assert 0 < len(array) <= size
        assert [minutes[i] for i in array] == sorted((minutes[i] for i in array), reverse=True)
        assert minutes[array[0]] <= BAND * minutes[array[-1]]


def test_arrays_of_one_limit_end_together() -> None:
    assert arrays([90, 80, 70, 60, 9, 8], int, 2) == [[90, 70], [80, 60], [9, 8]]


@given(st.integers(1, 100), st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_arrays_share_what_may_run_at_a_time(parallel: int, sizes: list[int]) -> None:
    found = shares(parallel, sizes)
    assert all(1 <= share <= size for share, size in zip(found, sizes, strict=True))
    assert sum(found) == min(sum(sizes), max(parallel, len(sizes)))


def test_a_stack_is_in_one_job_and_lower_priorities_come_first(plan_tiny: Callable[..., PlannedRun]) -> None:
    layout = [(0, 1), (None, 0), (0, 1), (1, 0), (None, 0), (1, 0), (1, 0)]  # stack, priority
    runs = [
        dataclasses.replace(plan_tiny(seed=seed), stack=stack, priority=priority)
        for seed, (stack, priority) in enumerate(layout)
    ]
    seconds = dict(zip([run.run_id for run in runs], [50.0, 40.0, 50.0, 20.0, 30.0, 20.0, 20.0], strict=True))
    levels = pack_runs(runs, seconds, 80.0)
    seeds = [[[run.spec.seed for run in job] for job in level] for level in levels]
    assert seeds == [[[1, 4], [3, 5, 6]], [[0, 2]]]
