"""Power laws against exact data and least squares."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.outcome import Estimate
from analysis.power_law import PowerLaw, fit_power_law, line
from sweep.schema import InputError


def test_line_is_weighted_least_squares_and_leaves_nan_out() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=12), rng.normal(size=12), rng.uniform(0.1, 2, 12)
    slope, intercept = np.polyfit(x, y, 1, w=np.sqrt(w))
    x, y, w = np.append(x, [np.nan, 1.0]), np.append(y, [3.0, np.nan]), np.append(w, [1.0, 1.0])
    assert line(x, y, w) == pytest.approx((intercept, slope))
    assert np.isnan(line(np.array([1.0, 1.0]), np.array([1.0, 2.0]))).all()


def test_standard_errors_are_those_of_ordinary_least_squares() -> None:
    rng = np.random.default_rng(1)
    x = np.geomspace(1e3, 1e9, 15)
    y = 3e2 * x**0.7 * np.exp(0.1 * rng.normal(size=15))
    found = fit_power_law(x, y)
    coefficients, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert found["exponent"].value == pytest.approx(coefficients[0])
    assert found["exponent"].se == pytest.approx(np.sqrt(covariance[0, 0]))
    assert found["coefficient"].value == pytest.approx(np.exp(coefficients[1]))


@pytest.mark.parametrize(
    ("coefficient", "exponent", "offset"), [(5.0, -0.3, 1.7), (400.0, -0.5, 0.2), (1e-3, 1.2, 10.0)]
)
def test_offset_is_recovered(coefficient: float, exponent: float, offset: float) -> None:
    x = np.geomspace(1e1, 1e6, 25)
    found = fit_power_law(x, coefficient * x**exponent + offset, offset=True)
    values = [found[name].value for name in ("coefficient", "exponent", "offset")]
    assert values == pytest.approx([coefficient, exponent, offset], rel=1e-5)


def test_value_at_x() -> None:
    law = PowerLaw(Estimate(2.0), Estimate(0.5))
    assert law.at(9.0) == pytest.approx(6.0)
    assert law.to_json()["exponent"] == {"value": 0.5, "se": None, "low": None, "high": None}


def test_unusable_input_is_refused() -> None:
    with pytest.raises(InputError, match="positive"):
        fit_power_law(np.array([1.0, 2, 3, -4]), np.ones(4))
    with pytest.raises(InputError, match="2 distinct x"):
        fit_power_law(np.array([1.0, 2, 2]), np.ones(3))
