"""Sizes read in all samples at once are those of each sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from analysis.critical_batch import make_cells, steps_in, steps_to
from analysis.tables.runs import Run, SeedNoise, extract
from analysis.tables.sizes import best_ends, make_sizes, size_curve, size_curves
from analysis.tables.table import make_table
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


def test_decayed_runs_of_two_batches_are_settings_of_one_horizon() -> None:
    """Whole updates end a little apart; the better batch is read, with all its seeds."""
    tables = [decayed_sweep([1e10, 1e11], shapes=[(2, 16)], batch=batch, seeds=2) for batch in (2048, 3072)]
    for table, loss in zip(tables, (1.0, 1.05), strict=True):
        batch = str(table.runs["batch_tokens"].iloc[0])
        for frame in (table.runs, table.curves):
            frame["run_id"] = frame["run_id"].astype(str) + "-" + batch
        table.curves["test_loss"] *= loss
    runs = extract(make_table(*(pd.concat(parts) for parts in zip(*((t.runs, t.curves) for t in tables), strict=True))))
    assert len({run.final_tokens for run in runs}) == 3  # the lower budget is a whole number of updates of both
    (size,) = make_sizes(runs, None)
    assert [(runs[i].batch, runs[i].seed) for i in best_ends(runs, size)] == [(2048, 0), (2048, 1), (2048, 0)]
    values, index = size_curve(runs, size)
    assert {runs[i].batch for i in index} == {2048}
    assert (np.diff(values) <= 0).all()
