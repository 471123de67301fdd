"""Learning rate and weight-average coefficient as pure functions of the step."""

from __future__ import annotations

import math

from sweep.spec import ScheduleSpec


def learning_rate(schedule: ScheduleSpec, peak: float, step: int) -> float:
    """Learning rate of the update number `step`, counted from 0.

    Warm-up is linear and reaches the peak at its last update. A decay starts from the peak and would reach `final` one
    update after the schedule's last, so that none is made in vain at rate zero; `schedule_steps` may exceed the run's
    steps. Shapes:

    - constant: the peak after warm-up
    - linear, cosine: decay over everything after warm-up (Kaplan et al. 2020, section 2.2: 3000 steps of linear
      warm-up, then a cosine to zero; Hoffmann et al. 2022: a cosine to one tenth)
    - wsd: the peak until the last `decay_steps` updates, which decay linearly or as 1 - sqrt(x) (Hägele et al. 2024)
    - inverse_sqrt: peak * sqrt(warmup / update), never ending (`final` is a lower bound)
    """
    update = step + 1
    if update < schedule.warmup_steps:
        return peak * update / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    if schedule.name == "inverse_sqrt":
        return peak * max(schedule.final, math.sqrt(max(schedule.warmup_steps, 1) / update))
    start = schedule.warmup_steps
    if schedule.name == "wsd":
        start = schedule.schedule_steps - schedule.decay_steps
    x = min(1.0, max(0.0, (step - start) / max(schedule.schedule_steps - start, 1)))
    if schedule.name == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * x))
    elif schedule.name == "wsd" and schedule.decay_shape == "sqrt":
        share = 1 - math.sqrt(x)
    else:
        share = 1 - x
    return peak * (schedule.final + (1 - schedule.final) * share)


def average_coefficient(window: float, update: int) -> float:
    """Weight c of the newest weights in avg <- avg + c (weights - avg) after the update number `update`, from 1.

    Polynomial-decay averaging (Shamir & Zhang 2013, section 4): c = (eta + 1) / (update + eta), so that update s
    enters with weight ~ s^eta whatever the number of steps. Its mean age is update / (eta + 2); eta = 2 / window - 2
    gives it the mean age of a plain average over the last `window` (0 < window <= 1) of all updates so far. A share of
    the steps, unlike a fixed half-life, means the same at every batch size.
    """
    eta = 2 / window - 2
    return (eta + 1) / (update + eta)
