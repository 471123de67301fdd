"""Resampled runs: what is drawn, what is drawn again, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import engine
from analysis.uncertainty import resample
from sweep.schema import InputError

PARAMS = np.repeat([1.0, 2.0, 3.0, 4.0], 3)
RUN = np.repeat(np.arange(6), 2)  # two points a run; sizes 1 and 2 share run 1, 3 and 4 share run 4


def test_points_of_a_run_are_drawn_together() -> None:
    counts, again = resample.run_counts(RUN, {"params": PARAMS}, {"params": 1}, 500, np.random.default_rng(0))
    assert again == 0
    assert counts.shape == (500, 12)
    np.testing.assert_array_equal(counts[:, ::2], counts[:, 1::2])
    np.testing.assert_array_equal(counts[:, ::2].sum(axis=1), np.full(500, 6))
    assert counts.mean() == pytest.approx(1)
    # Multinomial: a run's count has variance 1 - 1/6.
    assert counts[:, ::2].var() == pytest.approx(5 / 6, rel=0.1)


def test_samples_that_lose_too_many_sizes_are_drawn_again() -> None:
    counts, again = resample.run_counts(RUN, {"params": PARAMS}, {"params": 4}, 300, np.random.default_rng(0))
    assert again > 0
    for row in counts:
        assert len(np.unique(PARAMS[row > 0])) == 4


def test_rows_of_weight_zero_take_no_part() -> None:
    weights = np.where(PARAMS == 4, 0.0, 2.0)
    columns, loss, w, run = resample.points(
        "law", {"params": PARAMS}, np.ones(12), weights, list("aabbccddeeff"), least_points=9, least={"params": 3}
    )
    assert len(columns["params"]) == len(loss) == 9
    assert set(w) == {2.0}
    assert run.max() == 4
    with pytest.raises(InputError, match="law: 3 distinct params do not determine the law; give at least 4"):
        resample.points("law", {"params": PARAMS}, np.ones(12), weights, None, least_points=9, least={"params": 4})
    with pytest.raises(InputError, match="law: 9 points do not determine"):
        resample.points("law", {"params": PARAMS}, np.ones(12), weights, None, least_points=10, least={})
    with pytest.raises(InputError, match="weights must be finite"):
        resample.points("law", {"params": PARAMS}, np.ones(12), -weights - 1, None, least_points=1, least={})


def test_distinct_optima() -> None:
    objective = np.array([1.0, 1.0 + 1e-9, 1.2, 1.2 + 1e-9, 1.4, 1.45, 9.0])
    optima = np.arange(7.0)[:, None]
    np.testing.assert_array_equal(resample.distinct(optima, objective)[:, 0], [0, 2, 4])
    np.testing.assert_array_equal(resample.distinct(optima[[0, 6]], objective[[0, 6]])[:, 0], [0])


def test_replicates_are_weighted_fits_widened_by_what_the_constants_take() -> None:
    """A line through eight runs of one point: each draw is the weighted least-squares slope of the runs drawn, its
    deviation from the fit's multiplied by sqrt(8/6)."""
    rng = np.random.default_rng(0)
    ln_x = np.linspace(-1, 1, 8)
    ln_loss = 1 - 0.3 * ln_x + 0.01 * rng.standard_normal(8)
    design = np.stack([np.ones(8), ln_x], axis=1)

    def solve(weights: np.ndarray, starts: np.ndarray) -> engine.Fit:
        return engine.solve(design[None], ln_loss, starts, weights=weights)

    task = resample.Task(
        law="line",
        columns={"x": np.exp(ln_x)},
        loss=np.exp(ln_loss),
        weights=np.ones(8),
        run=np.arange(8),
        solve=solve,
        starts=np.array([[1.0, -0.3]]),
        constants=lambda theta: {"slope": np.asarray(theta)[..., 1]},
        ln_fitted=lambda theta: design @ theta,
        least={"x": 2},
        squared=True,
    )
    found = resample.fit(task, bootstrap=50, seed=3)
    counts, _ = resample.run_counts(task.run, task.columns, task.least, 50, np.random.default_rng(3))
    slopes = np.array([np.polyfit(ln_x, ln_loss, 1, w=np.sqrt(w))[0] for w in counts])
    slope = np.polyfit(ln_x, ln_loss, 1)[0]
    np.testing.assert_allclose(found.draws["slope"], slope + np.sqrt(8 / 6) * (slopes - slope), rtol=1e-7)
    assert found.estimates["slope"].value == pytest.approx(slope, rel=1e-9)
