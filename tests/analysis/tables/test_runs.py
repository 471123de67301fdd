"""Groups, recipes and seed noise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.tables.runs import ASSUMED_SIGMA, DENSE, extract, main_recipe, seed_noise, thin
from analysis.tables.table import Table, make_table
from analysis.uncertainty.simulate import synthetic_sweep

SEEDS = {(2, 16, 16): 3, (2, 32, 16): 3}
CELLS = {(2, 16): (8, 16), (2, 32): (16,)}


def test_seed_noise_is_found_again() -> None:
    found = [
        seed_noise(extract(synthetic_sweep(cells=CELLS, seeds=SEEDS, tokens=1e6, sigma=0.01, correlation=0.7, seed=k)))
        for k in range(30)
    ]
    assert all(noise.freedom >= 4 for noise in found)
    assert math.sqrt(np.mean([noise.sigma**2 for noise in found])) == pytest.approx(0.01, rel=0.2)
    assert np.median([noise.correlation for noise in found]) == pytest.approx(0.7, rel=0.5)


def test_without_repeats_the_noise_is_assumed_and_says_so() -> None:
    noise = seed_noise(extract(synthetic_sweep(cells=CELLS, seeds={}, tokens=1e6)))
    assert (noise.sigma, noise.freedom) == (ASSUMED_SIGMA, 0)


def test_repeats_that_end_in_the_warmup_say_nothing_of_the_noise() -> None:
    table = synthetic_sweep(cells=CELLS, seeds=SEEDS, tokens=1e6)
    table.runs["warmup_tokens"] = 1e9
    noise = seed_noise(extract(table))
    assert (noise.sigma, noise.freedom) == (ASSUMED_SIGMA, 0)


def with_more(table: Table, suffix: str = "b", **changes: object) -> Table:
    """The table with a second copy of its runs in which some columns differ."""
    runs = table.runs.assign(run_id=table.runs["run_id"] + suffix, **changes)
    curves = table.curves.assign(run_id=table.curves["run_id"].astype("string") + suffix)
    return make_table(pd.concat([table.runs, runs]), pd.concat([table.curves, curves]))


def test_other_recipes_and_decayed_runs_are_kept_apart() -> None:
    table = synthetic_sweep(cells=CELLS, seeds={}, tokens=5e5)
    for changes in ({"weight_decay": 0.1}, {"optimizer": "adafactor"}, {"weight_average": 0.0}, {"precision": "bf16"}):
        chosen, others = main_recipe(extract(with_more(table, **changes)))
        assert (len(chosen), len(others)) == (3, 1)
    runs = extract(with_more(table, schedule="cosine"))
    assert sum(run.decayed for run in runs) == 3
    cut = with_more(with_more(table, schedule="cosine"), "c", schedule="cosine", schedule_steps=10**9)
    assert len({run.recipe for run in extract(cut) if run.decayed}) == 2


def test_of_two_lengths_of_one_run_the_longer_counts() -> None:
    table = synthetic_sweep(cells={(2, 16): (16,)}, seeds={}, tokens=1e6)
    short = table.curves["tokens"] < 5e5
    runs = table.runs.assign(run_id="short", steps=100)
    curves = table.curves[short].assign(run_id="short")
    kept = extract(make_table(pd.concat([runs, table.runs]), pd.concat([curves, table.curves])))
    assert [run.run_id for run in kept] == list(table.runs["run_id"])


def test_labels_are_short_and_tell_shapes_apart() -> None:
    table = synthetic_sweep(cells=CELLS, seeds={}, tokens=5e5)
    assert {run.group for run in extract(table)} == {"2x16", "2x32"}
    labels = {run.group for run in extract(with_more(table, family="llama", n_ctx=256))}
    assert labels == {f"2x{d} family={f} n_ctx={n}" for d in (16, 32) for f, n in (("gpt2", 128), ("llama", 256))}


def test_few_evaluations_are_kept_and_many_are_averaged() -> None:
    x = np.log(np.arange(1, 1001) * 1e4)
    y = 0.5 + 40 * np.exp(-0.4 * x)
    np.testing.assert_array_equal(thin(x[:DENSE], y[:DENSE])[1], y[:DENSE])
    noise = 0.01 * np.random.default_rng(0).normal(size=1000)
    at, means = thin(x, y + noise)
    assert DENSE / 2 < len(at) < DENSE
    assert (at[-1], means[-1]) == (x[-1], (y + noise)[-1])
    assert (np.diff(at) > 0).all()
    np.testing.assert_allclose(thin(x, y)[1], 0.5 + 40 * np.exp(-0.4 * at), atol=2e-4)
    assert np.std(means[-10:-1] - 0.5 - 40 * np.exp(-0.4 * at[-10:-1])) < 0.003


def test_no_average_crosses_the_end_of_the_warmup() -> None:
    x = np.log(np.arange(1, 1001) * 1e4)
    start = math.log(3.005e6)
    at, means = thin(x, np.where(x < start, 5.0, 1.0), start)
    assert set(means.round(12)) == {1.0, 5.0}
    assert (at[means > 2] < start).all()


def test_a_dense_run_gives_the_curve_of_a_sparse_one() -> None:
    """The same run logged 30 and 2,000 times."""
    table = synthetic_sweep(cells={(2, 16): (16,)}, seeds={}, tokens=1e6, sigma=0.0)
    (run,) = extract(table)
    truth = run.curve
    tokens = np.linspace(2e4, float(np.exp(truth.end)), 2000)
    loss = np.exp(np.interp(np.log(tokens), truth.x, truth.y))
    curves = pd.DataFrame({"run_id": run.run_id, "step": np.arange(2000), "tokens": tokens, "test_loss": loss})
    (dense,) = extract(make_table(table.runs, curves))
    assert len(dense.ln_tokens) <= DENSE
    at = np.linspace(11, truth.end, 50)
    np.testing.assert_allclose(dense.curve.ln_loss(at), truth.ln_loss(at), atol=3e-4)
