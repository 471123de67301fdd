"""Approach 3 on planted constants and on the public points of Hoffmann et al. 2022, fig. 4."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from analysis import parametric
from analysis.chain.parametric import derive_parametric
from analysis.outcome import Outcome, Warnings
from analysis.tables.runs import SeedNoise, extract
from analysis.tables.sizes import make_sizes
from analysis.uncertainty.bootstrap import Samples, simulate
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep
from sweep.schema import InputError

POINTS = Path(os.environ.get("ISOLOSS_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "chinchilla_points.csv"
TRUE = {"A": 20.0, "B": 400.0, "E": 1.2, "alpha": 0.35, "beta": 0.4, "a": 0.4 / 0.75, "b": 0.35 / 0.75}
THETA = np.array([np.log(20.0), 0.35, np.log(400.0), 0.4, np.log(1.2)])
FEW = settings(max_examples=5, deadline=None, derandomize=True)


def table(noise: float = 0.003, seed: int = 0, theta: np.ndarray = THETA) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """params, tokens and loss of 36 runs: six sizes at six horizons."""
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e4, 1e7, 6), np.geomspace(1e6, 1e9, 6)))
    shock = noise * np.random.default_rng(seed).standard_normal(36)
    return n, d, parametric.predict(theta, n, d) * np.exp(shock)


def values(found: Outcome) -> dict[str, float]:
    return {name: estimate.value for name, estimate in found.estimates.items()}


@functools.cache
def fitted() -> dict[str, float]:
    """Constants of `table()`."""
    return values(parametric.fit(*table()))


def codes(found: Outcome) -> list[str]:
    return [warning["code"] for warning in found.warnings]


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


def test_decayed_runs_count_at_their_best_learning_rate_alone() -> None:
    runs = extract(decayed_sweep(np.geomspace(1e10, 1e13, 4), lr_factors=(0.5, 1.0, 2.0), seeds=2))
    sizes = make_sizes(runs, None)
    points = parametric.readings(runs, sizes)
    assert {runs[i].lr for i, _ in points} == {3e-3}
    assert len(points) == len({(run.params, run.final_tokens) for run in runs}) + len(sizes)  # seeds at one budget
    found = derive_parametric(Samples(runs), sizes, 0.003, Warnings(), "cpu")
    for name, value in TRUE.items():
        assert found.estimates[name].value == pytest.approx(value, rel=1e-4), name


def test_unusable_input_is_refused() -> None:
    n, d = np.repeat([1e4, 1e5, 1e6], 3), np.tile([1e6, 1e7, 1e8], 3)
    with pytest.raises(InputError, match="loss must be positive"):
        parametric.fit_parametric(n, d, np.r_[np.nan, np.ones(8)])
    with pytest.raises(InputError, match="8 points of 3 model sizes"):
        parametric.fit_parametric(n[1:], d[1:], np.ones(8))
    with pytest.raises(InputError, match="9 points of 2 model sizes"):
        parametric.fit_parametric(np.where(n == 1e6, 1e5, n), d, np.ones(9))


def test_fit_gives_the_planted_constants_with_the_table_it_saw() -> None:
    n, d, loss = table(noise=0.0)
    found = parametric.fit(n, d, loss)
    assert {name: values(found)[name] for name in TRUE} == pytest.approx(TRUE, rel=1e-6)
    assert (found.law, found.points, found.starts, found.interval) == ("parametric", 36, 4500, "none")
    assert found.span["flops"] == (6e10, 6e16)
    points = found.frames["points"]
    np.testing.assert_allclose(points["residual"], np.log(points["loss"] / points["fitted"]), atol=1e-12)
    assert all(estimate.se is None for estimate in found.estimates.values())
    assert not found.warnings


def test_without_an_offset_there_is_no_e() -> None:
    n, d, loss = table(theta=THETA[:4], noise=0.001)
    found = parametric.fit(n, d, loss, offset=False)
    assert found.starts == 900
    assert "E" not in found.estimates
    assert [values(found)[k] for k in ("alpha", "beta")] == pytest.approx([0.35, 0.4], rel=0.02)
    assert "no_offset" in codes(parametric.fit(*table(theta=THETA[:4], noise=0.0)))


def test_a_loss_that_does_not_depend_on_tokens_is_said_not_to() -> None:
    n, d, _ = table()
    found = parametric.fit(n, d, 1.2 + 20 / n**0.35)
    assert "no_gain" in codes(found)


def test_optimal_sizes_minimise_the_law() -> None:
    params, tokens = parametric.optimal(THETA, 1e14)
    sizes = params * np.geomspace(0.5, 2, 101)
    assert 6 * params * tokens == pytest.approx(1e14)
    assert parametric.predict(THETA, sizes, 1e14 / (6 * sizes)).argmin() == 50
    both = np.stack([THETA, THETA + 0.01])
    assert parametric.predict(both, sizes, sizes).shape == (2, 101)
    np.testing.assert_allclose(parametric.optimal(both, np.array([1e14, 1e15]))[0][0, 0], params)


def test_least_squares_errors_are_those_of_the_bootstrap_and_robust_losses_have_none() -> None:
    n, d, loss = table()
    squared = parametric.fit(n, d, loss, kind="squared")
    again = parametric.fit(n, d, loss, kind="squared", bootstrap=300)
    for name in ("alpha", "beta", "E", "a"):
        assert squared.estimates[name].se == pytest.approx(again.estimates[name].se, rel=0.35), name
    assert parametric.fit(n, d, loss, kind="absolute").estimates["a"].se is None


def test_rows_of_one_run_are_resampled_together() -> None:
    """Every row three times over: as rows of the same runs they add nothing, as runs of their own they seem to."""
    n, d, loss = (np.repeat(column, 3) for column in table())
    runs = np.repeat([f"run {i:02}" for i in range(36)], 3)
    once = parametric.fit(*table(), bootstrap=200, seed=1)
    together = parametric.fit(n, d, loss, run=runs, bootstrap=200, seed=1)
    apart = parametric.fit(n, d, loss, bootstrap=200, seed=1)
    np.testing.assert_allclose(together.draws["a"], once.draws["a"], rtol=1e-6)
    assert apart.estimates["a"].se < 0.8 * together.estimates["a"].se
    assert together.estimates["a"].low < TRUE["a"] < together.estimates["a"].high
    assert "36 runs" in together.interval


def test_a_seed_gives_the_same_draws_and_another_gives_others() -> None:
    first, again, other = (parametric.fit(*table(), bootstrap=20, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.draws["alpha"], again.draws["alpha"])
    assert not np.isclose(first.draws["alpha"], other.draws["alpha"]).any()


@FEW
@given(st.sampled_from(["params", "tokens"]), st.floats(1e-3, 1e3))
def test_other_units_move_only_their_own_constant(which: str, factor: float) -> None:
    n, d, loss = table()
    before = fitted()
    other = (n * factor, d) if which == "params" else (n, d * factor)
    after = values(parametric.fit(*other, loss))
    name, exponent = ("A", "alpha") if which == "params" else ("B", "beta")
    expected = {**before, name: before[name] * factor ** before[exponent]}
    expected["G"] = (
        expected["alpha"] * expected["A"] / (expected["beta"] * expected["B"])
    ) ** (1 / (expected["alpha"] + expected["beta"]))  # fmt: skip
    assert after == pytest.approx(expected, rel=1e-5)


@FEW
@given(st.permutations(range(36)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    n, d, loss = table()
    assert values(parametric.fit(n[order], d[order], loss[order])) == pytest.approx(fitted(), rel=1e-7)


@FEW
@given(st.integers(0, 35), st.sampled_from(["huber", "squared"]))
def test_a_weight_of_two_is_a_row_given_twice(row: int, kind: str) -> None:
    n, d, loss = table()
    weights = np.ones(36)
    weights[row] = 2
    weighted = parametric.fit(n, d, loss, weights=weights, kind=kind)  # type: ignore[arg-type]
    twice = parametric.fit(*(np.append(c, c[row]) for c in (n, d, loss)), kind=kind)  # type: ignore[arg-type]
    assert values(weighted) == pytest.approx(values(twice), rel=1e-6)
    assert weighted.objective == pytest.approx(twice.objective, rel=1e-10)


def test_tables_that_do_not_determine_the_law_are_refused() -> None:
    n, d, loss = table()
    two = n > np.unique(n)[3]
    refused = {
        "2 distinct params": (n[two], d[two], loss[two]),
        "1 distinct tokens": (n, np.full(36, 1e8), loss),
        "proportional to params": (n, 20 * n, loss),
        "every loss is 3": (n, d, np.full(36, 3.0)),
        "loss must be positive": (n, d, np.where(n == n[0], -1.0, loss)),
        "of one length": (n, d[1:], loss),
    }
    for message, columns in refused.items():
        with pytest.raises(InputError, match=message):
            parametric.fit(*columns)
    with pytest.raises(InputError, match="delta of Huber's loss must be"):
        parametric.fit(n, d, loss, delta=0.0)


@pytest.mark.skipif(not POINTS.is_file(), reason="the public points are not here")
class TestPublicPoints:
    """Minimum 1.01827402e-3 at E 1.8172, A 477.8, B 2143, alpha 0.3473, beta 0.3672."""

    @pytest.fixture(scope="class")
    def data(self) -> pd.DataFrame:
        frame = pd.read_csv(POINTS)
        return frame[frame["outlier"] == 0]

    @pytest.fixture(scope="class")
    def found(self, data: pd.DataFrame) -> Outcome:
        torch.set_num_threads(1)
        return parametric.fit(*(data[name].to_numpy() for name in ("params", "tokens", "loss")), bootstrap=4000)

    def test_huber_from_the_papers_4500_starts(self, found: Outcome) -> None:
        assert found.objective <= 1.018275e-3
        expected = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347311, "beta": 0.367172, "a": 0.513900}
        assert {name: values(found)[name] for name in expected} == pytest.approx(expected, rel=2e-5)
        assert not found.warnings

    def test_bootstrap_over_runs_gives_the_published_errors(self, found: Outcome) -> None:
        """Those of 4,000 replicates by Besiroglu et al. 2024, and of a their rounded 0.02; every replicate converged
        (no warning above says otherwise)."""
        for name, se in {"A": 124.5, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206, "a": 0.02}.items():
            assert found.estimates[name].se == pytest.approx(se, rel=0.15), name
        assert all(np.isfinite(draws).all() for draws in found.draws.values())

    def test_no_scipy_start_does_better(self, data: pd.DataFrame, found: Outcome) -> None:
        n, d, y = (np.log(data[name].to_numpy()) for name in ("params", "tokens", "loss"))

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            a, alpha, b, beta, e = theta
            terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
            prediction = np.logaddexp.reduce(terms)
            share = np.exp(terms - prediction)
            r = prediction - y
            psi = np.clip(r, -1e-3, 1e-3)
            gradient = [share[0] @ psi, -(share[0] * n) @ psi, share[1] @ psi, -(share[1] * d) @ psi, share[2] @ psi]
            return 1e4 * float((psi * (r - psi / 2)).sum()), 1e4 * np.array(gradient)

        options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10}
        grid = parametric.starts()[np.random.default_rng(0).choice(4500, 40, replace=False)]
        ends = [minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun / 1e4 for start in grid]
        assert found.objective <= min(ends) * (1 + 1e-9)

    def test_least_absolute_deviations_are_the_published_fit(self, data: pd.DataFrame) -> None:
        """In effect what Besiroglu et al. 2024 report: A 482.01, B 2085.43, E 1.8169, alpha 0.3478, beta 0.3658."""
        columns = (data[name].to_numpy() for name in ("params", "tokens", "loss"))
        absolute = parametric.fit(*columns, kind="absolute")
        assert absolute.objective <= 1.129498
        k = values(absolute)
        assert [k["A"], k["B"]] == pytest.approx([482.01, 2085.43], rel=1e-4)
        assert [k["E"], k["alpha"], k["beta"]] == pytest.approx([1.8169, 0.3478, 0.3658], abs=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    cpu, cuda = (parametric.fit(*table(), bootstrap=50, device=device) for device in ("cpu", "cuda"))
    assert cuda.objective == pytest.approx(cpu.objective, rel=1e-9)
    for name, draws in cpu.draws.items():
        np.testing.assert_allclose(cuda.draws[name], draws, rtol=1e-5)
