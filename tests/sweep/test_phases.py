"""How a stack goes through its sequences, beside a walk through them pass by pass."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.ladder import largest_divisor
from sweep.phases import phases

SIZES = st.sampled_from([2, 4, 8, 16])  # multiples of one another
NESTED = st.lists(st.tuples(st.integers(1, 6), SIZES, SIZES), min_size=1, max_size=6)  # steps, batch, micro-batch


def walk(members: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Runs and sequences of each pass, where it ends at the next update of any run."""
    position, found = 0, []
    while live := [member for member in members if member[0] > position]:
        due = min(batch - position % batch for _, batch, _ in live)
        size = min(due, *(most for _, _, most in live))
        found.append((len(live), size))
        position += size
    return found


@given(NESTED)
def test_passes_are_those_of_a_walk(given_runs: list[tuple[int, int, int]]) -> None:
    members = [(steps * batch, batch, min(most, batch)) for steps, batch, most in given_runs]
    found = phases(tuple(members))
    walked = walk(members)
    assert found[0].runs == len(members)
    assert sorted(i for phase in found for i in phase.leaving) == list(range(len(members)))
    position = 0.0
    for phase in found:
        position += phase.passes * phase.micro
        assert all(members[i][0] == pytest.approx(position) for i in phase.leaving)
        # where shorter runs have left in the middle of a batch, a few passes are smaller than the others
        sizes = [size for runs, size in walked if runs == phase.runs]
        assert sum(sizes) == pytest.approx(phase.passes * phase.micro)
        assert len(sizes) - math.ceil(math.log2(16)) <= phase.passes <= len(sizes)


def test_batches_without_a_common_divisor_pass_by_single_sequences() -> None:
    [phase] = phases(((48, 3, 3), (48, 16, 16)))
    assert (phase.runs, phase.micro, phase.passes) == (2, 1, 48)


@given(st.integers(1, 1000), st.integers(-3, 1000))
def test_largest_divisor(number: int, limit: int) -> None:
    assert largest_divisor(number, limit) == max([d for d in range(1, limit + 1) if number % d == 0], default=1)
