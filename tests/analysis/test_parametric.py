"""Approach 3 on planted constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis import parametric
from analysis.chain.surfaces import derive_parametric
from analysis.outcome import Warnings
from analysis.tables.runs import SeedNoise, extract
from analysis.tables.sizes import make_sizes
from analysis.uncertainty.bootstrap import Samples, simulate
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep
from sweep.schema import InputError

TRUE = {"A": 20.0, "B": 400.0, "E": 1.2, "alpha": 0.35, "beta": 0.4, "a": 0.4 / 0.75, "b": 0.35 / 0.75}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_planted_constants_come_back() -> None:
    runs = extract(decayed_sweep(np.geomspace(1e10, 1e13, 4)))
    found = derive_parametric(Samples(runs), make_sizes(runs, None), 0.003, Warnings(), "cpu")
    assert found.kind == "decayed"
    assert found.starts == 4500
    assert found.objective < 1e-12
    for name, value in TRUE.items():
        assert found.estimates[name].value == pytest.approx(value, rel=1e-4), name


def test_frontier_of_the_law_minimises_it() -> None:
    runs = extract(decayed_sweep(np.geomspace(1e10, 1e13, 4)))
    line = derive_parametric(Samples(runs), make_sizes(runs, None), 0.003, Warnings(), "cpu").line
    theta = np.array([np.log(20.0), 0.35, np.log(400.0), 0.4, np.log(1.2)])
    for row in line.iloc[::9].itertuples():
        sizes = row.params * np.array([0.8, 1.0, 1.25])
        loss = parametric.predict(theta, sizes, row.flops / (6 * sizes))
        assert loss.argmin() == 1
        assert row.loss == pytest.approx(loss[1], rel=1e-3)


def test_interval_covers_the_planted_exponent() -> None:
    runs = extract(decayed_sweep(np.geomspace(1e10, 1e13, 4), sigma=0.003, seed=2))
    samples = simulate(runs, SeedNoise(0.003, 1.0, 0), 0.0, 60, np.random.default_rng(0))
    a = derive_parametric(samples, make_sizes(runs, None), 0.003, Warnings(), "cpu").estimates["a"]
    assert a.low is not None
    assert a.high is not None
    assert a.low < TRUE["a"] < a.high
    assert a.high - a.low < 0.3


def test_undecayed_curves_give_points_past_twice_the_warmup_of_one_batch() -> None:
    table = synthetic_sweep(tokens=2e6)
    table.runs["warmup_tokens"] = 4e5
    runs = extract(table)
    sizes = make_sizes(runs, 2048.0)
    points = parametric.readings(runs, sizes)
    assert {runs[i].batch for i, _ in points} == {2048}
    assert min(x for _, x in points) >= np.log(8e5) - 1e-9
    per_run = {i: [x for j, x in points if j == i] for i, _ in points}
    assert all(len(x) == 6 and max(x) == pytest.approx(runs[i].curve.end) for i, x in per_run.items())
    assert len(per_run) == 10  # six sizes, two of them with three seeds


def test_unusable_input_is_refused() -> None:
    n, d = np.repeat([1e4, 1e5, 1e6], 3), np.tile([1e6, 1e7, 1e8], 3)
    with pytest.raises(InputError, match="loss must be positive"):
        parametric.fit_parametric(n, d, np.r_[np.nan, np.ones(8)])
    with pytest.raises(InputError, match="8 points of 3 model sizes"):
        parametric.fit_parametric(n[1:], d[1:], np.ones(8))
    with pytest.raises(InputError, match="9 points of 2 model sizes"):
        parametric.fit_parametric(np.where(n == 1e6, 1e5, n), d, np.ones(9))
