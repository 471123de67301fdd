"""Approach 1 on any table of training curves: planted laws, kinds, intervals, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from analysis import frontier
from analysis.published import REFIT
from analysis.uncertainty.bootstrap import correlated_noise
from analysis.uncertainty.calibration import binomial_band
from analysis.uncertainty.simulate import SMALL_SWEEP, Truth, synthetic_sweep
from sweep.schema import InputError

TRUTH = Truth()
Columns = dict[str, Any]


def planted(sizes: int = 7, sigma: float = 0.0, seed: int = 0, points: int = 30) -> Columns:
    """Curves of Besiroglu's law for sizes no more than 2.2 times apart, from 1/8 to 4 times the tokens at which each is
    best; noise as between seeds, correlated over a factor e in tokens."""
    rng = np.random.default_rng(seed)
    params = np.geomspace(1e8, 1e8 * min(100.0, 2.2 ** (sizes - 1)), sizes)
    best = (params / REFIT.G) ** (1 / REFIT.a) / params
    tokens = best[:, None] * np.geomspace(1 / 8, 4, points)
    noise = np.array([correlated_noise(np.log(row), 1.0, rng)[0] for row in tokens])
    loss = REFIT.loss(params[:, None], tokens) * np.exp(sigma * noise)
    run = np.repeat([f"run {i}" for i in range(sizes)], points)
    return {"params": np.repeat(params, points), "tokens": tokens.ravel(), "loss": loss.ravel(), "run": run}


def kaplan_curves(**options: Any) -> Columns:
    """The curves of a synthetic sweep as one flat table."""
    table = synthetic_sweep(TRUTH, **options)
    frame = table.curves.merge(table.runs[["run_id", "params", "batch_tokens", "warmup_tokens"]], on="run_id")
    names = {"params": "params", "tokens": "tokens", "loss": "test_loss", "run": "run_id",
             "batch_tokens": "batch_tokens", "warmup_tokens": "warmup_tokens"}  # fmt: skip
    return {name: frame[of].to_numpy() for name, of in names.items()}


@pytest.mark.parametrize("sizes", [5, 7, 20])
def test_planted_exponents_come_back_with_few_and_many_sizes(sizes: int) -> None:
    found = frontier.fit(**planted(sizes))
    value = {name: e.value for name, e in found.estimates.items()}
    assert value["a"] == pytest.approx(REFIT.a, abs=2e-3)
    assert value["a"] + value["b"] == pytest.approx(1)
    assert 6 * value["N_coefficient"] * value["D_coefficient"] == pytest.approx(1)
    at = found.frames["optima"].query("edge == 'interior'")["flops"].to_numpy()
    n_opt = REFIT.params_opt(at)
    np.testing.assert_allclose(value["N_coefficient"] * at ** value["a"], n_opt, rtol=0.02)
    l_opt = REFIT.loss(n_opt, at / 6 / n_opt)
    falls, level = np.polyfit(np.log(at), np.log(l_opt), 1)
    assert value["L_exponent"] == pytest.approx(falls, abs=1e-3)
    assert np.log(value["L_coefficient"]) == pytest.approx(level, rel=0.01)
    middle, n_opt, l_opt = (float(v[len(at) // 2]) for v in (at, n_opt, l_opt))
    excess = REFIT.loss(2 * n_opt, middle / 12 / n_opt) / l_opt
    assert value["curvature"] == pytest.approx(math.log(excess) / math.log(2) ** 2, rel=0.2)
    assert found.other["a"] == pytest.approx(REFIT.a, abs=0.03)  # the envelope's own line


def test_the_envelopes_own_line_is_numpys_through_the_best_sizes() -> None:
    columns = planted(10)
    found = frontier.fit(**columns, method="envelope")
    ln_c = np.log(found.frames["optima"]["flops"])
    at = np.linspace(ln_c.iloc[0], ln_c.iloc[-1], 1500)
    sizes = np.unique(columns["params"])
    loss = np.array([REFIT.loss(n, np.exp(at) / 6 / n) for n in sizes])
    tokens = np.exp(at) / 6 / sizes[:, None]
    best = (sizes / REFIT.G) ** (1 / REFIT.a) / sizes
    loss[(tokens < best[:, None] / 8) | (tokens > 4 * best[:, None])] = np.inf
    index = loss.argmin(axis=0)
    inner = (index > 0) & (index < len(sizes) - 1)
    slope = np.polyfit(at[inner], np.log(sizes[index[inner]]), 1)[0]
    assert found.estimates["a"].value == pytest.approx(slope, abs=0.01)
    assert found.other["a"] == frontier.fit(**columns).estimates["a"].value
    assert "curvature" not in found.estimates


def test_adjusted_for_the_batch_the_planted_exponents_of_c_min_come_back() -> None:
    cells = {shape: (16,) for shape in SMALL_SWEEP}
    columns = kaplan_curves(sigma=0.0, seeds={}, cells=cells, warmup=1e5)
    found = frontier.fit(**columns, b_crit=(TRUTH.B_star, TRUTH.alpha_B))
    assert found.adjusted is not None
    value = {name: e.value for name, e in found.adjusted.estimates.items()}
    expected = TRUTH.exponents
    for name, exponent in (("a", "N"), ("B_exponent", "B"), ("S_exponent", "S")):
        assert value[name] == pytest.approx(expected[exponent], abs=5e-3), name
    assert value["L_exponent"] == pytest.approx(-TRUTH.alpha_C_min, abs=1e-3)
    assert value["b"] == pytest.approx(value["B_exponent"] + value["S_exponent"], abs=1e-9)
    raw = {name: e.value for name, e in found.estimates.items()}
    assert raw["a"] > value["a"] + 0.03
    assert raw["S_coefficient"] == pytest.approx(raw["D_coefficient"] / 2048)
    assert "B_exponent" not in raw
    (warning,) = (w for w in found.warnings if w["code"] == "inside_warmup")
    assert warning["message"].startswith(f"{(columns['tokens'] < 1e5).sum()} points inside the warm-up")
    assert set(found.to_json()["kinds"]) == {"raw", "adjusted"}


def test_edges_are_bounds_and_not_used() -> None:
    found = frontier.fit(**planted())
    optima = found.frames["optima"]
    assert {"smallest", "interior", "largest"} == set(optima["edge"])
    edge = optima[optima["edge"] != "interior"]
    assert edge["params"].isna().all()
    assert not edge["used"].any()
    assert found.warnings[0]["code"] == "optimum_at_edge"


def test_intervals_hold_the_truth() -> None:
    hits = dict.fromkeys(("a", "N_coefficient"), 0)
    truth = {"a": REFIT.a, "N_coefficient": REFIT.G * 6**-REFIT.a}
    for seed in range(40):
        found = frontier.fit(**planted(10, sigma=0.003, seed=seed), bootstrap=49, seed=seed)
        for name in hits:
            e = found.estimates[name]
            hits[name] += (e.low or np.inf) <= truth[name] <= (e.high or -np.inf)
    low, high = binomial_band(40)
    assert all(low <= count <= high for count in hits.values()), hits


def test_draws_are_joint_and_the_same_for_the_same_seed() -> None:
    columns = planted(sigma=0.003)
    one, other = (frontier.fit(**columns, bootstrap=30, seed=2) for _ in range(2))
    for name, draws in one.draws.items():
        np.testing.assert_array_equal(draws, other.draws[name])
        assert len(draws) == len(one.draws["a"])
    np.testing.assert_allclose(one.draws["a"] + one.draws["b"], 1)
    assert (one.frames["optima"]["low"] < one.frames["optima"]["high"]).any()
    data = json.loads(json.dumps(one.to_json(), allow_nan=False))
    assert data["method"] == "surface"
    assert set(data["envelope"]) == set(data["estimates"]) - {"curvature"}
    assert set(data["span"]) == {"flops", "params", "tokens", "loss"}


def test_order_of_rows_labels_and_seeds_of_a_size() -> None:
    columns = planted(sigma=0.002)
    one = frontier.fit(**columns).estimates["a"].value
    order = np.random.default_rng(0).permutation(len(columns["loss"]))
    shuffled = {name: v[order] for name, v in columns.items()}
    assert frontier.fit(**shuffled).estimates["a"].value == pytest.approx(one, rel=1e-12)
    del shuffled["run"]
    assert frontier.fit(**shuffled).estimates["a"].value == pytest.approx(one, rel=1e-12)
    worse = {**columns, "loss": columns["loss"] * 1.01, "run": np.char.add(columns["run"], " again")}
    both = {name: np.concatenate([v, worse[name]]) for name, v in columns.items()}
    assert frontier.fit(**both).estimates["a"].value == pytest.approx(one, rel=1e-9)  # the lowest of two runs counts


def test_flops_of_the_table_move_d_alone() -> None:
    """C = 12 N^0.9 D throughout: D_opt = C/k(N_opt)."""
    columns = planted(20)
    flops = 12 * columns["params"] ** 0.9 * columns["tokens"]
    value = {name: e.value for name, e in frontier.fit(**columns, flops=flops).estimates.items()}
    assert value["b"] == pytest.approx(1 - 0.9 * value["a"], abs=1e-6)


def test_what_a_reader_must_know_of_the_table_and_the_method_is_said() -> None:
    columns = kaplan_curves(sigma=0.002, warmup=1e5, points_per_decade=4)
    found = frontier.fit(**columns, method="envelope", bootstrap=5)
    assert {w["code"] for w in found.warnings} >= {"mixed_batches", "narrow_intervals", "inside_warmup"}
    assert "S_exponent" not in found.estimates


def test_bad_input_is_refused_in_one_line() -> None:
    columns = planted()
    for change, message in (
        ({"loss": np.where(columns["loss"] > 3, np.nan, columns["loss"])}, r"^frontier: loss nan in row \d+"),
        ({"run": np.repeat("one", len(columns["loss"]))}, "run one has several params; give each run a label"),
        ({"b_crit": (2e6, 0.2)}, "needs the batch of every run; give batch_tokens"),
        (
            {"b_crit": (2e6, -1.0), "batch_tokens": 2048 + 0 * columns["loss"]},
            r"both positive, not \(2000000.0, -1.0\)",
        ),
        ({"warmup_tokens": -1.0}, "warmup_tokens must be numbers from 0 on"),
        ({"warmup_tokens": 1e15}, "0 model sizes with curves do not determine"),
        ({"method": "guess"}, "method 'guess' is not known"),
    ):
        with pytest.raises(InputError, match=message) as error:
            frontier.fit(**(columns | change))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="3 model sizes with curves do not determine"):
        frontier.fit(**planted(3))


@pytest.mark.parametrize(("name", "factor"), [("params", 1e-6), ("tokens", 1e3), ("loss", 1.4427)])
def test_a_change_of_units_moves_the_coefficients_alone(name: str, factor: float) -> None:
    columns = planted(sigma=0.002)
    columns["flops"] = 6 * columns["params"] * columns["tokens"]
    one = frontier.fit(**columns).estimates
    other = frontier.fit(**(columns | {name: columns[name] * factor})).estimates
    moved = {"params": "N_coefficient", "tokens": "D_coefficient", "loss": "L_coefficient"}[name]
    for key, e in one.items():
        assert other[key].value == pytest.approx(e.value * (factor if key == moved else 1), rel=1e-6), key


def test_points_are_the_rows_of_the_table_in_its_curves() -> None:
    columns = planted(7)
    alone = {name: np.append(v, v[-1]) for name, v in columns.items()} | {"run": np.append(columns["run"], "alone")}
    found = frontier.fit(**alone)
    assert found.points == len(columns["loss"])
    assert len(found.frames["points"]) != found.points
    assert any(w["message"].startswith("1 run with fewer than two points") for w in found.warnings)
