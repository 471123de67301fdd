"""Power laws against exact data, least squares, Student's t and scipy; invariances; bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, linprog
from scipy.stats import t

from analysis import power_law
from analysis.outcome import Estimate
from analysis.power_law import PowerLaw, line
from sweep.schema import InputError


def noisy(points: int, *, offset: float = 0.0, sigma: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.geomspace(1e15, 1e21, points)
    y = offset + 40 * (x / 1e14) ** -0.15
    return x, y * np.exp(sigma * np.random.default_rng(seed).standard_normal(points))


def test_line_is_weighted_least_squares_and_leaves_nan_out() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=12), rng.normal(size=12), rng.uniform(0.1, 2, 12)
    slope, intercept = np.polyfit(x, y, 1, w=np.sqrt(w))
    x, y, w = np.append(x, [np.nan, 1.0]), np.append(y, [3.0, np.nan]), np.append(w, [1.0, 1.0])
    assert line(x, y, w) == pytest.approx((intercept, slope))
    assert np.isnan(line(np.array([1.0, 1.0]), np.array([1.0, 2.0]))).all()


def test_standard_errors_are_those_of_ordinary_least_squares() -> None:
    x, y = noisy(15)
    found = power_law.fit(x, y).estimates
    coefficients, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert found["exponent"].value == pytest.approx(coefficients[0])
    assert found["exponent"].se == pytest.approx(np.sqrt(covariance[0, 0]))
    assert found["coefficient"].value == pytest.approx(np.exp(coefficients[1]))
    assert found["coefficient"].se == pytest.approx(np.exp(coefficients[1]) * np.sqrt(covariance[1, 1]))


def test_intervals_of_a_line_are_those_of_student_s_t() -> None:
    """Four points leave two degrees of freedom: 2.9 standard errors on either side, not 1.6."""
    x, y = noisy(4)
    least = power_law.fit(x, y).estimates["exponent"]
    found = power_law.fit(x, y, bootstrap=20_000).estimates["exponent"]
    assert least.se is not None
    half = t.ppf(0.95, 2) * least.se
    assert found.se == pytest.approx(least.se, rel=0.03)
    assert (found.low, found.high) == pytest.approx((least.value - half, least.value + half), abs=0.05 * half)


@pytest.mark.parametrize(
    ("coefficient", "exponent", "offset"), [(5.0, -0.3, 1.7), (400.0, -0.5, 0.2), (1e-3, 1.2, 10.0)]
)
def test_offset_is_recovered(coefficient: float, exponent: float, offset: float) -> None:
    x = np.geomspace(1e1, 1e6, 25)
    found = power_law.fit(x, coefficient * x**exponent + offset, offset=True)
    values = [found.estimates[name].value for name in ("coefficient", "exponent", "offset")]
    assert values == pytest.approx([coefficient, exponent, offset], rel=1e-5)
    assert not found.warnings


def test_no_offset_is_said() -> None:
    x, y = noisy(10, sigma=0)
    y = y * (x / 1e18) ** (-0.02 * np.log(x / 1e18))  # falls ever faster: any offset above 0 makes the fit worse
    found = power_law.fit(x, y, offset=True, bootstrap=20)
    plain = power_law.fit(x, y)
    assert found.estimates["offset"].value == 0
    assert found.estimates["exponent"].value == pytest.approx(plain.estimates["exponent"].value)
    assert [w["code"] for w in found.warnings] == ["offset_at_zero"]


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_as_good_as_scipy(loss: str) -> None:
    x, y = noisy(20, offset=3.0)
    found = power_law.fit(x, y, offset=True, loss=loss, delta=0.03)  # type: ignore[arg-type]
    assert found.objective is not None

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.asarray(np.logaddexp(theta[0] + theta[1] * np.log(x / 1e18), theta[2]) - np.log(y))

    best = least_squares(residuals, [1.0, -0.15, 1.0], loss="linear" if loss == "squared" else loss, f_scale=0.03)
    assert found.objective <= best.cost * (2 if loss == "squared" else 1) * (1 + 1e-9)


def test_least_absolute_deviations_are_those_of_linear_programming() -> None:
    x, y = noisy(12)
    found = power_law.fit(x, y, loss="absolute")
    n, design = len(x), np.column_stack([np.ones(len(x)), np.log(x / 1e18)])
    equal = np.hstack([design, np.eye(n), -np.eye(n)])
    best = linprog(
        np.r_[0, 0, np.ones(2 * n)], A_eq=equal, b_eq=np.log(y), bounds=[(None, None)] * 2 + [(0, None)] * 24
    )
    assert found.objective == pytest.approx(best.fun, rel=1e-6)
    assert found.estimates["exponent"].value == pytest.approx(best.x[1], rel=1e-5)


def test_robust_fits_ignore_an_outlier_and_claim_no_curvature_error() -> None:
    x, y = noisy(20, sigma=0.002)
    y[3] *= 2
    for loss in ("huber", "absolute"):
        found = power_law.fit(x, y, loss=loss).estimates["exponent"]  # type: ignore[arg-type]
        assert found.value == pytest.approx(-0.15, abs=1e-3)
        assert (found.se, found.low) == (None, None)
        again = power_law.fit(x, y, loss=loss, bootstrap=100).estimates["exponent"]  # type: ignore[arg-type]
        assert again.low is not None
        assert again.high is not None
        assert again.low < -0.15 < again.high
    assert power_law.fit(x, y).estimates["exponent"].value != pytest.approx(-0.15, abs=3e-3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """40 tables of eight points; the band is that of a binomial with p = 0.9 at 99.9%: 29 to 40."""
    hits = dict.fromkeys(("coefficient", "exponent", "offset"), 0)
    truth = {"coefficient": 40 * 1e14**0.15, "exponent": -0.15, "offset": 1.7}
    for seed in range(40):
        x, y = noisy(8, offset=1.7, sigma=0.01, seed=seed)
        found = power_law.fit(x, y, offset=True, bootstrap=100, seed=seed)
        for name, value in truth.items():
            estimate = found.estimates[name]
            assert estimate.low is not None
            assert estimate.high is not None
            hits[name] += estimate.low <= value <= estimate.high
    assert min(hits.values()) >= 29, hits


def test_draws_are_joint_and_the_same_under_a_seed() -> None:
    x, y = noisy(9)
    one, same, other = (power_law.fit(x, y, bootstrap=50, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.draws["exponent"], same.draws["exponent"])
    assert (one.draws["exponent"] != other.draws["exponent"]).all()
    # Far from the data the coefficient goes with the exponent: in the middle the law is far better known.
    middle = np.exp(np.log(x).mean())
    at_middle = np.log(one.draws["coefficient"] * middle ** one.draws["exponent"])
    assert at_middle.std() < 0.2 * np.log(one.draws["coefficient"]).std()
    assert one.to_json()["draws"]["exponent"] == one.draws["exponent"].tolist()


@settings(max_examples=10, deadline=None)
@given(
    u=st.floats(1e-12, 1e12),
    v=st.floats(1e-6, 1e6),
    offset=st.booleans(),
    loss=st.sampled_from(["squared", "huber"]),
    seed=st.integers(0, 1000),
)
def test_units_move_only_what_they_should(u: float, v: float, offset: bool, loss: str, seed: int) -> None:
    """x times u: the coefficient times u^-exponent. y times v: coefficient and offset times v. Nothing else."""
    x, y = noisy(10, offset=2.0, sigma=0.01, seed=seed)
    one, other = (power_law.fit(*xy, offset=offset, loss=loss) for xy in ((x, y), (u * x, v * y)))  # type: ignore[arg-type]
    before, after = ({name: e.value for name, e in found.estimates.items()} for found in (one, other))
    expected = {"coefficient": v * before["coefficient"] * u ** -before["exponent"], "exponent": before["exponent"]}
    expected |= {"offset": v * before["offset"]} if offset else {}
    assert after == pytest.approx(expected, rel=1e-5)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)


def test_weights_count_as_repeated_rows_and_zero_as_none() -> None:
    x, y = noisy(8)
    w = np.array([1.0, 2, 1, 3, 1, 1, 0, 1])
    weighted = power_law.fit(x, y, weights=w)
    repeated = power_law.fit(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int)))
    assert weighted.estimates["exponent"].value == pytest.approx(repeated.estimates["exponent"].value)
    assert weighted.objective == pytest.approx(repeated.objective)
    assert weighted.points == 7


def test_value_at_x() -> None:
    law = PowerLaw(Estimate(2.0), Estimate(0.5))
    assert law.at(9.0) == pytest.approx(6.0)
    assert law.to_json()["exponent"] == {"value": 0.5, "se": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("x", "y", "keywords", "message"),
    [
        ([1, 2, 3, -4], [1, 1, 1, 1], {}, "positive"),
        ([1, 2, 3, 4], [1, np.nan, 1, 1], {}, "positive"),
        ([1, 2, 2], [1, 1, 1], {}, "2 distinct x"),
        ([1, 2, 3], [3, 2, 1], {"offset": True}, "at least 4"),
        ([1, 2, 3], [3, 2, 1], {"weights": [1, 1, 0]}, "2 distinct x"),
        ([1, 2, 3], [3, 2, 1], {"weights": [1, 1, -1]}, "weights"),
        ([1, 2, 3], [3, 2], {}, "one length"),
    ],
)
def test_unusable_input_is_refused(
    x: list[float], y: list[float], keywords: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        power_law.fit(np.array(x, dtype=float), np.array(y), **keywords)  # type: ignore[arg-type]


def test_an_exponent_that_one_x_alone_speaks_of_is_said() -> None:
    found = power_law.fit(np.arange(1.0, 8.0), np.array([9.0, *[4.0, 4.01, 3.99, 4.0, 4.02, 3.98]]), offset=True)
    assert "exponent_undetermined" in [w["code"] for w in found.warnings]
