"""Kaplan's surface on its own published constants and on planted ones."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import kaplan
from analysis.chain.frontier import EVERYWHERE
from analysis.chain.surfaces import derive_slices, derive_surface, lines_of_slices
from analysis.outcome import Warnings
from analysis.tables.runs import extract
from analysis.tables.sizes import make_sizes
from analysis.uncertainty.simulate import Truth, synthetic_sweep
from sweep.schema import InputError

TRUTH = Truth()
LAW = np.array([[np.log(TRUTH.B_star), -1 / TRUTH.alpha_B]])
# Kaplan et al. 2020, Table 3 and Eq. 5.3 with Table 5.
PUBLISHED = np.array([0.077 * np.log(6.5e13), 0.077, 0.76 * np.log(2.1e3), 0.76])
PUBLISHED_LAW = (np.log(2.1e8), -1 / 0.21)


@pytest.mark.parametrize(
    ("params", "losses"),
    [(1e6, (4.38, 4.16, 4.07)), (1e7, (3.80, 3.56, 3.44)), (1e8, (3.37, 3.09, 2.94)), (1e9, (3.05, 2.74, 2.55))],
)
def test_published_law_at_fixed_steps(params: float, losses: tuple[float, ...]) -> None:
    """At 1e4, 1e4.5 and 1e5 steps of 2^19 tokens, from the law's own arithmetic."""
    found = kaplan.loss_at(PUBLISHED, PUBLISHED_LAW, 2.0**19, params, 10 ** np.array([4, 4.5, 5]))
    assert found == pytest.approx(np.array(losses), abs=0.006)


@pytest.mark.parametrize(
    ("pf_days", "best", "loss"), [(1e-5, 4.9e4, 5.56), (1e-3, 2.5e6, 4.11), (1e-1, 8.9e7, 3.11), (1.0, 4.9e8, 2.73)]
)
def test_published_law_at_fixed_compute(pf_days: float, best: float, loss: float) -> None:
    sizes = np.geomspace(1e3, 1e10, 4000)
    steps = pf_days * 8.64e19 / (6 * sizes * 2**19)
    found = kaplan.loss_at(PUBLISHED, PUBLISHED_LAW, 2.0**19, sizes, steps)
    assert sizes[found.argmin()] == pytest.approx(best, rel=0.02)
    assert found.min() == pytest.approx(loss, abs=0.006)


def test_planted_surface_comes_back() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}))
    found, theta = derive_surface([runs], make_sizes(runs, 2048.0), LAW, EVERYWHERE, 0.004, Warnings())
    for name in kaplan.NAMES:
        assert found.estimates[name].value == pytest.approx(getattr(TRUTH, name), rel=0.02), name
    assert found.estimates["alpha_C_min"].value == pytest.approx(TRUTH.alpha_C_min, rel=0.005)
    np.testing.assert_allclose(found.points["fitted"], found.points["loss"], rtol=2e-3)
    sizes = make_sizes(runs, 2048.0)
    slices = derive_slices(runs, sizes, None, 2048.0)
    lines = lines_of_slices(slices, theta[0], LAW[0], 2048.0)
    assert set(slices["axis"]) == {"steps"}
    for at, points in slices.groupby("at"):
        line = lines[lines["at"] == at]
        np.testing.assert_allclose(np.interp(points["params"], line["params"], line["loss"]), points["loss"], rtol=4e-3)


def test_replicates_without_a_law_are_left_out() -> None:
    runs = extract(synthetic_sweep(sigma=0.0, seeds={}, tokens=1e6))
    laws = np.array([LAW[0], [np.nan, np.nan], LAW[0]])
    _, theta = derive_surface([runs] * 3, make_sizes(runs, 2048.0), laws, EVERYWHERE, 0.004, Warnings())
    assert np.isnan(theta[1]).all()
    np.testing.assert_allclose(theta[2], theta[0], rtol=1e-6)


def test_unusable_input_is_refused() -> None:
    n, s = np.repeat([1e4, 1e5, 1e6], 3), np.tile([1e2, 1e3, 1e4], 3)
    with pytest.raises(InputError, match="steps must be positive"):
        kaplan.fit_surface(n, np.r_[0.0, s[1:]], np.ones(9))
    with pytest.raises(InputError, match="2 model sizes"):
        kaplan.fit_surface(np.where(n == 1e6, 1e5, n), s, np.ones(9))
