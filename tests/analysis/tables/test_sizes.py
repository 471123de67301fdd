"""Sizes read in all samples at once are those of each sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from analysis.critical_batch import make_cells, steps_in, steps_to
from analysis.tables.runs import Run, SeedNoise, extract
from analysis.tables.sizes import make_sizes, size_curve, size_curves
from analysis.uncertainty.bootstrap import Samples, simulate
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep

CELLS = {(2, 8): (16,), (2, 16): (8, 16, 32), (2, 24): (16,), (2, 32): (16,)}


def samples_of(runs: Sequence[Run]) -> Samples:
    return simulate(runs, SeedNoise(0.01, 1.0, 0), 0.05, 5, np.random.default_rng(0))


@pytest.fixture(scope="module")
def undecayed() -> Samples:
    return samples_of(extract(synthetic_sweep(cells=CELLS, tokens=3e5, lr_factors=(0.5, 1.0), warmup=2e4)))


def test_curves_of_a_size(undecayed: Samples) -> None:
    for samples, batch in ((undecayed, 2048.0), (samples_of(extract(decayed_sweep([1e10, 3e10], seeds=2))), None)):
        for size in make_sizes(samples.runs, batch):
            values, index = size_curves(samples, size)
            each = [size_curve(runs, size) for runs in samples]
            np.testing.assert_allclose(values, [y for y, _ in each], atol=1e-12)
            np.testing.assert_array_equal(index, each[0][1])


def test_steps_of_a_cell(undecayed: Samples) -> None:
    cells, targets = make_cells(undecayed.runs), np.array([3.2, 2.9, 2.7, 2.2])
    first, ln_steps = steps_in(undecayed, cells, targets)
    each = [steps_to(runs, cells, targets) for runs in undecayed]
    np.testing.assert_allclose(ln_steps, [steps.ln_steps for steps in each], atol=1e-9)
    for name in ("lr", "seeds", "warmup", "at_edge"):
        np.testing.assert_array_equal(getattr(first, name), getattr(each[0], name))
    assert 0 < np.isfinite(ln_steps).mean() < 1
