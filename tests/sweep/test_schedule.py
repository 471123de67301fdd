"""Schedules at every step against closed forms, and the window of the weight average."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.schedule import average_coefficient, learning_rate
from sweep.spec import ScheduleSpec

PEAK, WARMUP, END, DECAY = 0.3, 10, 100, 25
CLOSED_FORMS = {  # learning rate / peak at step s after warm-up
    ("constant", "linear", 0.0): lambda s: 1.0,
    ("linear", "linear", 0.0): lambda s: (END - s) / (END - WARMUP),
    ("cosine", "linear", 0.1): lambda s: 0.55 + 0.45 * math.cos(math.pi * (s - WARMUP) / (END - WARMUP)),
    ("wsd", "linear", 0.0): lambda s: min(1.0, (END - s) / DECAY),
    ("wsd", "sqrt", 0.0): lambda s: 1 - math.sqrt(max(0.0, (s - (END - DECAY)) / DECAY)),
    ("inverse_sqrt", "linear", 0.0): lambda s: math.sqrt(WARMUP / (s + 1)),
}


@pytest.mark.parametrize(("form", "expected"), CLOSED_FORMS.items(), ids=lambda value: str(value))
def test_every_step_of_a_schedule(form, expected) -> None:
    name, shape, final = form
    decay = DECAY if name == "wsd" else 0
    schedule = ScheduleSpec(name, WARMUP, END, decay_steps=decay, decay_shape=shape, final=final)
    for step in range(END):
        share = (step + 1) / WARMUP if step < WARMUP else expected(step)
        assert learning_rate(schedule, PEAK, step) == pytest.approx(PEAK * share, abs=1e-12), step


@given(
    name=st.sampled_from(["constant", "linear", "cosine", "wsd", "inverse_sqrt"]),
    shape=st.sampled_from(["linear", "sqrt"]),
    warmup=st.integers(0, 50),
    decay=st.integers(0, 50),
    rest=st.integers(1, 100),
    final=st.floats(0, 1),
)
def test_any_schedule_rises_to_the_peak_and_never_leaves_its_range(name, shape, warmup, decay, rest, final) -> None:
    schedule = ScheduleSpec(name, warmup, warmup + decay + rest, decay, shape, final)
    rates = [learning_rate(schedule, 2.0, step) for step in range(schedule.schedule_steps + 20)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert all(a <= b for a, b in pairwise(rates[:warmup]))
    after = rates[max(warmup - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    if name in ("linear", "cosine") or (name == "wsd" and decay):
        assert rates[-1] == pytest.approx(2.0 * final, abs=1e-12)


@pytest.mark.parametrize("window", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("updates", [200, 2000])
def test_average_has_the_mean_age_of_a_plain_one_over_the_window(window: float, updates: int) -> None:
    average = 0.0  # of the update's own number: the average's age is what is missing from `updates`
    for update in range(1, updates + 1):
        average += average_coefficient(window, update) * (update - average)
    assert average_coefficient(window, 1) == 1.0
    assert (updates - average) / updates == pytest.approx(window / 2, rel=0.05)
