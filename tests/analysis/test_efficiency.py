"""Kaplan's App. B against the numbers it prints, against a brute-force minimum, and on draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from analysis import efficiency
from analysis import published as pub
from analysis.uncertainty.simulate import Truth

PF_DAY = 8.64e19
ALPHA_N, ALPHA_S = 0.076, 0.76  # Table 5
LAW = np.array([np.log(2.1e8), -1 / 0.21])


def _theta(N_c: float, alpha_N: float, S_c: float, alpha_S: float) -> np.ndarray:
    return np.array([alpha_N * np.log(N_c), alpha_N, alpha_S * np.log(S_c), alpha_S])


def test_exponents_the_paper_derives_from_table_5() -> None:
    laws = efficiency.derived_laws(_theta(8.8e13, ALPHA_N, 2.1e3, ALPHA_S), LAW)
    found = {name: float(law.exponent) for name, law in laws.items()}
    assert found == pytest.approx({"N": 0.684, "B": 0.248, "S": 0.068, "D": 0.316, "L": -0.0520}, abs=5e-4)
    assert -found["L"] == pytest.approx(pub.ALPHA_C_MIN_DERIVED, abs=5e-4)
    assert found["N"] + found["D"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("surface", "scale"), [((8.8e13, ALPHA_N, 2.1e3, ALPHA_S), 2.2e8), ((6.5e13, 0.077, 2.1e3, 0.76), 1.6e8)]
)
def test_scale_of_the_loss_by_equation_b8(surface: tuple[float, float, float, float], scale: float) -> None:
    """C_c in PF-days from Table 5 and from Table 3."""
    law = efficiency.derived_laws(_theta(*surface), LAW)["L"]
    assert np.exp(-law.intercept / law.exponent) / PF_DAY == pytest.approx(scale, rel=0.01)


def test_derived_laws_are_the_minimum_over_sizes() -> None:
    """The least C_min over sizes at a loss, found numerically, is where the derived laws put it."""
    truth = Truth()
    law = np.array([np.log(truth.B_star), -1 / truth.alpha_B])
    laws = efficiency.derived_laws(_theta(truth.N_c, truth.alpha_N, truth.S_c, truth.alpha_S), law)
    for loss in (3.0, 2.2):

        def ln_compute(ln_n: float, loss: float = loss) -> float:
            steps = truth.S_min(np.exp(ln_n), loss)
            return float(np.nan_to_num(np.log(6 * np.exp(ln_n) * truth.B_crit(loss) * steps), nan=1e3))

        best = minimize_scalar(ln_compute, bounds=(3, 30), method="bounded", options={"xatol": 1e-9})
        flops, size = np.exp(best.fun), np.exp(best.x)
        assert laws["N"].at(flops) == pytest.approx(size, rel=1e-4)
        assert laws["L"].at(flops) == pytest.approx(loss, rel=1e-9)
        assert laws["B"].at(flops) == pytest.approx(truth.B_crit(loss), rel=1e-9)
        assert laws["S"].at(flops) == pytest.approx(truth.S_min(size, loss), rel=1e-4)
        assert laws["D"].at(flops) == pytest.approx(2 * truth.B_crit(loss) * truth.S_min(size, loss), rel=1e-4)
    assert {k: float(laws[k].exponent) for k in "NBS"} == pytest.approx(truth.exponents)


def test_draws_pass_through_and_impossible_ones_are_nan() -> None:
    theta = np.array([_theta(6.5e13, 0.077, 2.1e3, 0.76), _theta(6.5e13, -0.01, 2.1e3, 0.76)])
    laws = efficiency.derived_laws(theta, np.array([LAW, LAW]))
    assert laws["N"].exponent.shape == (2,)
    assert np.isfinite(laws["N"].exponent[0])
    assert np.isnan(laws["N"].exponent[1])


def test_efficient_training_stops_a_tenth_above_convergence() -> None:
    assert efficiency.stop_ratio(ALPHA_N, ALPHA_S) == pytest.approx(pub.EFFICIENT_STOP)


def test_against_training_to_two_percent() -> None:
    """2.7 times the parameters, 7.7 times fewer updates, 65% less compute (with Table 3's exponents)."""
    found = efficiency.against_convergence(0.077, 0.76)
    assert found["params"] == pytest.approx(pub.EFFICIENT_SIZE_FACTOR, abs=0.05)
    assert 1 / found["steps"] == pytest.approx(pub.EFFICIENT_STEPS_DIVISOR, abs=0.06)
    assert 1 - found["compute"] == pytest.approx(pub.EFFICIENT_COMPUTE_SAVED, abs=0.006)


def test_against_convergence_is_what_the_surface_says() -> None:
    """Both trainings end at one loss on the surface itself."""
    n, s, loss = 0.077, 0.76, 3.0
    size = {f: 6.5e13 * ((1 + f) / loss) ** (1 / n) for f in (n / s, 0.02)}
    steps = {f: pub.SURFACE.steps_min(size[f], loss) for f in size}
    found = efficiency.against_convergence(n, s)
    assert found["params"] == pytest.approx(size[n / s] / size[0.02])
    assert found["steps"] == pytest.approx(steps[n / s] / steps[0.02])


def test_cost_of_a_wrong_size() -> None:
    compute = efficiency.excess_compute([0.6, 1.0, 2.2], ALPHA_N, ALPHA_S)
    assert compute == pytest.approx([1.16, 1.0, 1.20], abs=0.005)
    assert efficiency.excess_steps(2.2, ALPHA_N, ALPHA_S) == pytest.approx(0.55, abs=0.005)
    assert efficiency.least_ratio(ALPHA_N, ALPHA_S) == pytest.approx(0.285, abs=5e-4)
    assert np.isinf(efficiency.excess_compute(0.285, ALPHA_N, ALPHA_S))
    assert np.isfinite(efficiency.excess_compute(0.286, ALPHA_N, ALPHA_S))


def test_range_of_sizes_at_twenty_percent() -> None:
    low, high = efficiency.size_range(0.2, ALPHA_N, ALPHA_S)
    assert (low, high) == pytest.approx(pub.SIZE_RANGE_AT_20_PERCENT, abs=0.03)
    assert efficiency.excess_compute([low, high], ALPHA_N, ALPHA_S) == pytest.approx([1.2, 1.2])
    with pytest.raises(ValueError, match="positive"):
        efficiency.size_range(0.0, ALPHA_N, ALPHA_S)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.03, 0.5), st.floats(0.2, 1.5), st.floats(0.01, 1.0))
def test_the_cheapest_size_is_the_efficient_one(alpha_N: float, alpha_S: float, excess: float) -> None:
    low, high = efficiency.size_range(excess, alpha_N, alpha_S)
    assert efficiency.least_ratio(alpha_N, alpha_S) < low < 1 < high
    inside = np.geomspace(low * (1 + 1e-9), high * (1 - 1e-9), 9)
    cost = efficiency.excess_compute(inside, alpha_N, alpha_S)
    assert ((cost >= 1 - 1e-12) & (cost <= 1 + excess + 1e-9)).all()
