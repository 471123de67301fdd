"""Envelopes and N_opt(C) on planted laws."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import envelope as env
from analysis.chain.frontier import EVERYWHERE, derive_frontier
from analysis.chain.results import Frontier
from analysis.minima import find_optima
from analysis.outcome import Warnings
from analysis.tables.runs import Run, extract
from analysis.tables.sizes import choose_batch, make_sizes
from analysis.tables.table import Table
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.simulate import SMALL_SWEEP, Truth, decayed_sweep, synthetic_sweep
from sweep.schema import InputError

TRUTH = Truth()
LAW = np.array([[np.log(TRUTH.B_star), -1 / TRUTH.alpha_B]])


def derive(table: Table, law: np.ndarray | None = LAW) -> tuple[Frontier, Warnings]:
    runs, warnings = extract(table), Warnings()
    batch = choose_batch(runs)
    return derive_frontier(Samples(runs), make_sizes(runs, batch), batch, law, EVERYWHERE, warnings), warnings


@pytest.fixture(scope="module")
def noiseless() -> Frontier:
    return derive(synthetic_sweep(sigma=0.0, seeds={}))[0]


def test_planted_exponents_come_back(noiseless: Frontier) -> None:
    fits = noiseless.fits["adjusted"]
    for name, value in TRUTH.exponents.items():
        assert fits[name].exponent.value == pytest.approx(value, abs=0.02), name
    assert fits["L"].exponent.value == pytest.approx(-TRUTH.alpha_C_min, abs=0.001)
    assert fits["D"].exponent.value == pytest.approx(TRUTH.exponents["B"] + TRUTH.exponents["S"], abs=0.02)


def test_levels_are_right_too(noiseless: Frontier) -> None:
    """At each interior C_min: N_opt within 15% of the minimum of the law itself, and the loss within 0.3%."""
    optima = noiseless.optima[(noiseless.optima["kind"] == "adjusted") & noiseless.optima["used"]]
    sizes = np.geomspace(1e3, 2e5, 4000)
    for row in optima.itertuples():
        ln_low, ln_high = np.full(len(sizes), np.log(1.2)), np.full(len(sizes), np.log(20.0))
        for _ in range(60):  # the loss of each size after C_min = 6 N B_crit(L) S_min
            middle = (ln_low + ln_high) / 2
            loss = np.exp(middle)
            with np.errstate(invalid="ignore"):
                short = ~(6 * sizes * TRUTH.B_crit(loss) * TRUTH.S_min(sizes, loss) <= row.flops)
            ln_low, ln_high = np.where(short, middle, ln_low), np.where(short, ln_high, middle)
        loss = np.exp(ln_high)
        line = float(noiseless.fits["adjusted"]["N"].at(row.flops))
        assert line == pytest.approx(sizes[loss.argmin()], rel=0.15)
        assert row.params == pytest.approx(sizes[loss.argmin()], rel=0.3)
        assert row.loss >= loss.min() * 0.999
        assert float(noiseless.fits["adjusted"]["L"].at(row.flops)) == pytest.approx(loss.min(), rel=3e-3)


def test_identities(noiseless: Frontier) -> None:
    """C_min = 6 N B S, shares that sum to one, D = 2 B S at the critical batch; raw C = 6 N D and S = D/B."""
    shares = noiseless.shares.set_index("quantity")
    assert shares["exponent"].sum() == pytest.approx(1, abs=1e-9)
    growth = shares["flops_high"].iloc[0] / shares["flops_low"].iloc[0]
    assert shares["factor"].prod() == pytest.approx(growth, rel=1e-9)
    used = noiseless.optima[noiseless.optima["used"]]
    adjusted, raw = (used[used["kind"] == kind] for kind in ("adjusted", "raw"))
    product = 6 * adjusted["params"] * adjusted["batch_tokens"] * adjusted["steps"]
    np.testing.assert_allclose(product, adjusted["flops"], rtol=1e-9)
    np.testing.assert_allclose(adjusted["tokens"], 2 * adjusted["batch_tokens"] * adjusted["steps"], rtol=1e-9)
    np.testing.assert_allclose(6 * raw["params"] * raw["tokens"], raw["flops"], rtol=1e-9)
    np.testing.assert_allclose(raw["steps"], raw["tokens"] / 2048, rtol=1e-9)
    assert noiseless.batch_tokens == 2048


def test_the_envelope_is_the_lowest_curve_and_edges_are_bounds(noiseless: Frontier) -> None:
    optima = noiseless.optima[noiseless.optima["kind"] == "raw"]
    for row in optima.iloc[::4].itertuples():
        batch_loss = [
            np.interp(row.flops, curve["flops"], curve["loss"], np.inf, np.inf)
            for _, curve in noiseless.curves[noiseless.curves["kind"] == "raw"].groupby("params")
        ]
        assert row.loss == pytest.approx(min(batch_loss), rel=1e-3)
    edge = optima[optima["edge"] != "interior"]
    assert len(edge) > 0
    assert edge["params"].isna().all()
    assert not edge["used"].any()
    assert set(edge["params_run"]) <= {1536, 12 * 3 * 64**2}


def test_noise_leaves_the_exponent_unbiased() -> None:
    found = [derive(synthetic_sweep(sigma=0.004, seed=k))[0].fits["adjusted"]["N"].exponent.value for k in range(12)]
    assert np.mean(found) == pytest.approx(TRUTH.exponents["N"], abs=0.03)
    assert np.std(found) < 0.06


def test_a_size_with_more_batches_gains_nothing() -> None:
    """The extra batches of a swept size do not enter; without them the frontier is the same."""
    swept = synthetic_sweep(sigma=0.0, seeds={})
    single = synthetic_sweep(sigma=0.0, seeds={}, cells={shape: (16,) for shape in SMALL_SWEEP})
    one, other = derive(swept)[0], derive(single)[0]
    assert one.fits["raw"]["N"].exponent.value == pytest.approx(other.fits["raw"]["N"].exponent.value, rel=1e-9)


def test_surface_of_a_quadratic_is_exact() -> None:
    ln_n, grid = np.log(np.geomspace(1e3, 1e5, 6)), np.linspace(20, 24, 15)
    optimum = 0.6 * (grid - 22) + ln_n.mean()
    values = 0.02 * (ln_n[:, None] - optimum) ** 2 + 1 - 0.05 * (grid - 22)
    k = env.fit_surface(ln_n, grid, values, find_optima(ln_n, values))
    best_n, best_l = env.surface_optimum(k, grid, grid)
    np.testing.assert_allclose(best_n, optimum, atol=1e-9)
    np.testing.assert_allclose(best_l, 1 - 0.05 * (grid - 22), atol=1e-9)


def test_common_batch_and_one_layer_models() -> None:
    cells = {(1, 16): (16,), **{shape: (16, 8) if shape == (2, 16) else (16,) for shape in SMALL_SWEEP}}
    runs = extract(synthetic_sweep(cells=cells, sigma=0, seeds={}, tokens=5e5))
    assert choose_batch(runs) == 2048
    assert "1x16" not in {size.group for size in make_sizes(runs, 2048.0)}
    mixed = extract(synthetic_sweep(cells={(2, 8 * k): (2**k,) for k in range(1, 6)}, sigma=0, seeds={}, tokens=5e5))
    assert choose_batch(mixed) is None
    assert len(make_sizes(mixed, None)) == 5


def test_decayed_runs_of_several_horizons_make_a_raw_frontier() -> None:
    """Final losses of L = E + A/N^0.35 + B/D^0.4, so N_opt goes as C^(0.4/0.75)."""
    shapes = [(2, 8 * k) for k in (1, 2, 3, 4, 6, 8, 12)]
    runs: list[Run] = extract(decayed_sweep(np.geomspace(3e9, 3e12, 7), shapes=shapes))
    found = derive_frontier(Samples(runs), make_sizes(runs, None), None, None, EVERYWHERE, Warnings())
    assert set(found.fits) == {"raw"}
    assert found.fits["raw"]["N"].exponent.value == pytest.approx(0.4 / 0.75, abs=0.03)


def test_too_few_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="2 model sizes"):
        derive(synthetic_sweep(cells={(2, 16): (16,), (2, 32): (16,)}, tokens=5e5))


def test_no_interior_optimum_gives_bounds_and_no_fit() -> None:
    """All sizes far too large for the compute: the smallest is always best."""
    cells = {(4, 8 * k): (16,) for k in (8, 10, 12, 14)}
    found, warnings = derive(synthetic_sweep(cells=cells, tokens=3e5, sigma=0, seeds={}))
    assert found.fits == {}
    assert set(found.optima["edge"]) == {"smallest"}
    assert found.shares.empty
    assert {w["code"] for w in warnings} == {"optimum_at_edge"}


def test_nothing_is_adjusted_where_b_crit_was_not_measured() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}))
    sizes = make_sizes(runs, 2048.0)
    found = derive_frontier(Samples(runs), sizes, 2048.0, LAW, (2.05, 2.35), Warnings()).optima
    adjusted = found[found["kind"] == "adjusted"]
    assert adjusted["loss"].between(2.05, 2.35).all()
    assert found[found["kind"] == "raw"]["loss"].min() < 2.05
