"""Steps to a target loss against batch size, the critical batch B_crit(L), and its law (Kaplan et al. 2020, 5.1).

tradeoff: S = S_min + E_min/B and the law over losses, for many problems at once. groups: the same from anybody's
arrays, with intervals (`fit`). cells: the steps that the runs of a sweep need.
"""

from analysis.critical_batch.cells import (
    Cell,
    Steps,
    by_group,
    choose_targets,
    make_cells,
    seed_variance,
    steps_in,
    steps_to,
    tuning_scatter,
)
from analysis.critical_batch.groups import CriticalOutcome, fit
from analysis.critical_batch.tradeoff import (
    LEAST_BATCHES,
    Tradeoff,
    fit_law,
    fit_tradeoffs,
    law_estimates,
    overhead_batch,
)

__all__ = [
    "LEAST_BATCHES",
    "Cell",
    "CriticalOutcome",
    "Steps",
    "Tradeoff",
    "by_group",
    "choose_targets",
    "fit",
    "fit_law",
    "fit_tradeoffs",
    "law_estimates",
    "make_cells",
    "overhead_batch",
    "seed_variance",
    "steps_in",
    "steps_to",
    "tuning_scatter",
]
