"""The critical batch of a sweep: crossings, cells and the law over losses, from planted sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import critical_batch as cb
from analysis.chain.critical import derive_critical
from analysis.chain.results import Critical
from analysis.outcome import Warnings
from analysis.tables.runs import SeedNoise, extract
from analysis.uncertainty.bootstrap import simulate
from analysis.uncertainty.simulate import Truth, synthetic_sweep
from sweep.schema import InputError

TRUTH = Truth()


def derive(table: object, replicates: int = 0, sigma: float = 0.004) -> tuple[Critical, np.ndarray | None, Warnings]:
    warnings = Warnings()
    runs = extract(table)  # type: ignore[arg-type]
    samples = simulate(runs, SeedNoise(sigma, 1.0, 0), 0.0, replicates, np.random.default_rng(0))
    return *derive_critical(samples, sigma, warnings), warnings


def test_too_few_batches_are_refused() -> None:
    one_batch = synthetic_sweep(cells={(2, 16): (8, 16)}, tokens=3e5, seeds={})
    with pytest.raises(InputError, match="3 or more batch sizes"):
        derive(one_batch)


@pytest.fixture(scope="module")
def noiseless() -> Critical:
    section, law, _ = derive(synthetic_sweep(sigma=0.0, tokens=3e6))
    assert law is not None
    return section


def test_planted_laws_come_back_from_noiseless_curves(noiseless: Critical) -> None:
    points = noiseless.points[noiseless.points["used"]]
    assert len(points) >= 20
    expected = [float(TRUTH.S_min(n, loss)) for n, loss in zip(points["params"], points["target_loss"], strict=True)]
    np.testing.assert_allclose(points["S_min"], expected, rtol=0.01)
    np.testing.assert_allclose(points["B_crit"], TRUTH.B_crit(points["target_loss"].to_numpy()), rtol=0.01)
    np.testing.assert_allclose(points["E_min"], points["B_crit"] * points["S_min"], rtol=1e-9)
    assert noiseless.law is not None
    assert noiseless.law["B_star"].value == pytest.approx(TRUTH.B_star, rel=0.01)
    assert noiseless.law["alpha_B"].value == pytest.approx(TRUTH.alpha_B, rel=0.003)
    assert noiseless.law["B_crit"].value == pytest.approx(float(TRUTH.B_crit(noiseless.at_loss or 0)), rel=0.01)
    there = points[points["target_loss"] == noiseless.at_loss]
    assert len(there) == 2  # both models measured it
    assert there["B_crit"].min() <= noiseless.law["B_crit"].value <= there["B_crit"].max()


def test_points_that_do_not_count_say_why(noiseless: Critical) -> None:
    left = noiseless.points[~noiseless.points["used"]]
    assert len(left) > 0
    assert (left["reason"] != "").all()
    assert (noiseless.points[noiseless.points["used"]]["reason"] == "").all()


def test_unreached_cells_are_lower_bounds(noiseless: Critical) -> None:
    cells = noiseless.cells
    censored = cells[cells["censored"]]
    assert len(censored) > 0
    assert not censored["used"].any()
    for row in censored.itertuples():
        assert row.steps < float(TRUTH.S_min(row.params, row.target_loss)) * (
            1 + float(TRUTH.B_crit(row.target_loss)) / row.batch_tokens
        ) or np.isnan(TRUTH.S_min(row.params, row.target_loss))
    crossings = noiseless.crossings[~noiseless.crossings["censored"] & ~noiseless.crossings["warmup"]]
    np.testing.assert_allclose(crossings["tokens"], crossings["steps"] * crossings["batch_tokens"])


def test_noise_and_its_errors() -> None:
    """With 0.4% seed noise the fits stay within their standard errors, and the law within its interval."""
    section, _, _ = derive(synthetic_sweep(tokens=3e6, seed=3), replicates=60)
    points = section.points[section.points["used"]]
    z = (
        np.log(points["B_crit"] / TRUTH.B_crit(points["target_loss"].to_numpy()))
        * points["B_crit"]
        / points["B_crit_se"]
    )
    assert 0.3 < np.sqrt((z**2).mean()) < 1.8
    assert (points["B_crit_low"] < points["B_crit"]).all()
    assert section.law is not None
    low, high = section.law["slope"].low, section.law["slope"].high
    assert low is not None
    assert high is not None
    assert low < -1 / TRUTH.alpha_B + 0.5
    assert high > -1 / TRUTH.alpha_B - 0.5
    assert section.rises == "yes"


def test_a_b_crit_that_follows_no_power_law_is_reported() -> None:
    """The law's interval holds noise only, so a line through bent points must not stand without a warning."""
    table = synthetic_sweep(tokens=3e6, sigma=1e-3, seed=3)
    assert "misfit" not in {w["code"] for w in derive(table, sigma=1e-3)[2]}
    # Large batches lose on the way down: below a loss of 2.3 every batch needs more steps, the larger the more so.
    runs = table.runs.set_index("run_id")["batch_tokens"].astype(float)
    share = np.log(table.curves["run_id"].map(runs).to_numpy(dtype=float) / 256) / np.log(64)
    loss = table.curves["test_loss"].to_numpy(dtype=float)
    table.curves["test_loss"] = np.where(loss < 2.3, loss + 0.4 * np.clip(share, 0, 1) * (2.3 - loss), loss)
    warnings = derive(table, sigma=1e-3)[2]
    assert next(w["message"] for w in warnings if w["code"] == "misfit").startswith(
        "the law misses the measured B_crit"
    )


def test_best_rate_is_taken_per_target_and_its_edge_flagged() -> None:
    cells = {(2, 16): (2, 8, 32, 128)}
    inner = synthetic_sweep(cells=cells, tokens=1e6, sigma=0, lr_factors=(0.5, 1, 2), seeds={})
    section, _, warnings = derive(inner)
    used = section.cells[section.cells["used"]]
    assert not used["lr_at_edge"].any()
    np.testing.assert_allclose(used["lr"], 3e-3 * np.sqrt(used["batch_tokens"] / 128))
    one, _, _ = derive(synthetic_sweep(cells=cells, tokens=1e6, sigma=0, seeds={}))
    both = used.merge(one.cells, on=["group", "batch_tokens", "target_loss"])
    np.testing.assert_allclose(both["steps_x"], both["steps_y"], rtol=0.01)
    assert not one.cells["lr_at_edge"].any()  # an axis of one rate is a rule, not an edge
    outer, _, warnings = derive(synthetic_sweep(cells=cells, tokens=1e6, sigma=0, lr_factors=(1, 2, 4), seeds={}))
    assert outer.cells[outer.cells["used"]]["lr_at_edge"].all()
    assert {w["code"] for w in warnings} >= {"lr_at_edge"}


def test_a_seed_that_fails_farther_on_censors_the_cell() -> None:
    """Two seeds, one of which never gets to the target although it ran longer than the other needed."""
    table = synthetic_sweep(cells={(2, 16): (2, 8, 32)}, tokens=1e6, sigma=0, seeds={(2, 16, 8): 2})
    slow = table.curves["run_id"] == "2x16-8-1-1"
    loss = table.curves["test_loss"]
    table.curves["test_loss"] = loss.where(~slow, loss.clip(lower=2.5))
    runs = extract(table)
    cells = cb.make_cells(runs)
    steps = cb.steps_to(runs, cells, np.array([2.7, 2.4]))
    middle = [cell.batch for cell in cells].index(1024)
    assert steps.seeds[middle].tolist() == [2, 0]
    assert np.isfinite(steps.ln_steps[middle, 0])
    assert np.isnan(steps.ln_steps[middle, 1])


def test_crossings_inside_the_warmup_do_not_count() -> None:
    table = synthetic_sweep(cells={(2, 16): (2, 8, 32)}, tokens=1e6, sigma=0, seeds={})
    table.runs["warmup_tokens"] = 60.0 * table.runs["batch_tokens"]
    runs = extract(table)
    cells = cb.make_cells(runs)
    steps = cb.steps_to(runs, cells, np.array([3.5, 2.4]))
    assert steps.warmup[cells.index(next(c for c in cells if c.batch == 4096))].tolist() == [True, False]
    assert np.isnan(steps.ln_steps[steps.warmup]).all()
    assert cb.choose_targets(runs, cells).max() < 3.5


def test_tuning_scatter_is_found_again() -> None:
    found = [
        cb.tuning_scatter(extract(synthetic_sweep(tuning=tuning, seed=k, tokens=2e6)), 0.004)
        for tuning in (0.0, 0.1)
        for k in range(5)
    ]
    assert np.sqrt(np.mean(np.square(found[:5]))) < 0.035
    assert np.sqrt(np.mean(np.square(found[5:]))) == pytest.approx(0.1, rel=0.3)


def test_a_bad_rate_beside_good_ones_moves_no_target() -> None:
    """Sixteen times the best rate: its curve is far above the others of its cell."""
    options = {"cells": {(2, 16): (2, 8, 32, 128)}, "sigma": 0.0, "warmup": 2e4, "seeds": {}, "lr_penalty": 0.5}
    good, bad = (extract(synthetic_sweep(lr_factors=factors, **options)) for factors in ((1.0,), (1.0, 16.0)))
    np.testing.assert_array_equal(*(cb.choose_targets(runs, cb.make_cells(runs)) for runs in (good, bad)))
    assert cb.tuning_scatter(bad, 0.004) == pytest.approx(cb.tuning_scatter(good, 0.004))
