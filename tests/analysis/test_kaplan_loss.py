"""Kaplan's one-resource laws and L(N, D) on planted laws, on the published constants and against scipy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis import engine, kaplan_loss, power_law
from analysis import published as pub
from sweep.schema import PF_DAY, InputError

SIZES, TOKENS = np.geomspace(4e5, 7e8, 6), np.geomspace(2e7, 2e10, 5)
N, D = (a.ravel() for a in np.meshgrid(SIZES, TOKENS))
L = pub.DATA_SURFACE.loss(N, D)
PUBLISHED = {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103}  # Table 2


def _noisy(loss: np.ndarray, sigma: float = 0.01) -> np.ndarray:
    return np.asarray(loss * np.exp(sigma * np.random.default_rng(5).standard_normal(len(loss))))


@pytest.mark.parametrize(
    ("fit", "law", "low", "constants", "unit"),
    [
        (kaplan_loss.fit_params, pub.L_OF_N, 1e5, {"N_c": 8.8e13, "alpha_N": 0.076}, 1.0),
        (kaplan_loss.fit_tokens, pub.L_OF_D, 2e7, {"D_c": 5.4e13, "alpha_D": 0.095}, 1.0),
        (kaplan_loss.fit_flops, pub.L_OF_C, 1e-8, {"C_c": 1.6e7, "alpha_C": 0.057}, PF_DAY),
    ],
)
def test_published_laws_come_back(fit, law: pub.Power, low: float, constants: dict[str, float], unit: float) -> None:  # type: ignore[no-untyped-def]
    """C_c in PF-days from compute in FLOP."""
    x = np.geomspace(low, 1e4 * low, 12)
    found = fit(x * unit, law(x))
    assert {name: e.value for name, e in found.estimates.items()} == pytest.approx(constants, rel=1e-6)


def test_interval_of_one_resource_is_that_of_the_power_law() -> None:
    x = np.geomspace(1e5, 1e9, 8)
    y = _noisy(pub.L_OF_N(x))
    found = kaplan_loss.fit_params(x, y, bootstrap=400, seed=2)
    line = power_law.fit(x, y, bootstrap=400, seed=2)
    mine, other = found.estimates["alpha_N"], line.estimates["exponent"]
    assert other.low is not None
    assert other.high is not None
    assert (mine.value, mine.low, mine.high) == (-other.value, -other.high, -other.low)
    k, e = line.draws["coefficient"], line.draws["exponent"]
    np.testing.assert_allclose((found.draws["N_c"] / 1e7) ** found.draws["alpha_N"], k * 1e7**e, rtol=1e-9)
    n_c = found.estimates["N_c"]
    assert n_c.low is not None
    assert n_c.high is not None
    assert n_c.low < 8.8e13 < n_c.high
    assert set(found.span) == {"params", "loss"}
    assert {"params", "loss", "fitted", "residual"} <= set(found.frames["points"])
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("weighted", [False, True])
def test_standard_error_of_the_scale_is_that_of_a_direct_fit(weighted: bool) -> None:
    x = np.geomspace(1e5, 1e9, 9)
    y = _noisy(pub.L_OF_N(x), 0.003)
    w = np.linspace(1, 3, 9) if weighted else np.ones(9)

    def residuals(t: np.ndarray) -> np.ndarray:
        return np.sqrt(w) * (t[1] * (t[0] - np.log(x)) - np.log(y))  # t: ln N_c, alpha_N

    best = least_squares(residuals, [32.0, 0.076], x_scale=[1, 1e-3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    error = np.sqrt(np.linalg.inv(best.jac.T @ best.jac)[0, 0] * 2 * best.cost / 7)
    found = kaplan_loss.fit_params(x, y, weights=w if weighted else None).estimates["N_c"]
    assert found.value == pytest.approx(np.exp(best.x[0]), rel=1e-5)
    assert found.se == pytest.approx(found.value * error, rel=1e-4)


def test_a_loss_that_does_not_fall_is_said() -> None:
    found = kaplan_loss.fit_params(np.array([1e4, 1e5, 1e6, 1e7]), np.array([3.0, 3.0, 3.1, 3.1]))
    assert [w["code"] for w in found.warnings] == ["not_falling"]
    assert found.to_json()["estimates"]["N_c"]["value"] is None
    with pytest.raises(InputError, match=r"^kaplan-d: 2 distinct tokens do not determine"):
        kaplan_loss.fit_tokens(np.array([1e6, 1e6, 1e7]), np.array([4.0, 4.0, 3.0]))
    with pytest.raises(InputError, match=r"^kaplan-c: flops and loss must be positive"):
        kaplan_loss.fit_flops(np.array([1e6, 2e6, 1e7]), np.array([4.0, -4.0, 3.0]))


@pytest.mark.parametrize("kind", ["squared", "huber", "absolute"])
def test_size_and_data_give_back_table_2(kind: engine.Loss) -> None:
    found = kaplan_loss.fit_params_tokens(N, D, L, kind=kind)
    assert {name: e.value for name, e in found.estimates.items()} == pytest.approx(PUBLISHED, rel=1e-4)
    np.testing.assert_allclose(kaplan_loss.predict(PUBLISHED, N, D), L, rtol=1e-12)


def test_size_and_data_agree_with_scipy() -> None:
    loss = _noisy(L)
    found = kaplan_loss.fit_params_tokens(N, D, loss)

    def residuals(t: np.ndarray) -> np.ndarray:
        a, ratio, c, alpha = t
        return alpha * np.logaddexp(ratio * (a - np.log(N)), c - np.log(D)) - np.log(loss)

    best = least_squares(residuals, [31.0, 0.7, 30.0, 0.1], x_scale=[1, 0.1, 1, 0.01], xtol=1e-15, ftol=1e-15)
    assert found.objective is not None
    assert found.objective <= 2 * best.cost * (1 + 1e-9)
    assert found.estimates["N_c"].value == pytest.approx(np.exp(best.x[0]), rel=1e-4)
    covariance = np.linalg.inv(best.jac.T @ best.jac) * 2 * best.cost / (len(N) - 4)
    assert found.estimates["alpha_D"].se == pytest.approx(np.sqrt(covariance[3, 3]), rel=1e-3)


def test_bootstrap_of_size_and_data_covers_the_truth() -> None:
    found = kaplan_loss.fit_params_tokens(N, D, _noisy(L), bootstrap=100, seed=1)
    assert not found.warnings
    for name, truth in PUBLISHED.items():
        e = found.estimates[name]
        assert e.low is not None
        assert e.high is not None
        assert e.low - 0.5 * (e.high - e.low) < truth < e.high + 0.5 * (e.high - e.low), name
        assert found.draws[name].shape == (100,)
    # What the data determine is known far better than the constants alone: N_c and alpha_N trade off.
    drawn = {name: found.draws[name] for name in PUBLISHED}
    there = [float(kaplan_loss.predict({k: v[i] for k, v in drawn.items()}, 1e7, 1e9)) for i in range(100)]
    assert np.std(there) < 0.01 * float(pub.DATA_SURFACE.loss(1e7, 1e9))
    assert np.std(np.log(drawn["N_c"])) > 0.1


@settings(max_examples=4, deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(1e-6, 1e3))
def test_units_move_only_their_constant(of_params: float, of_tokens: float) -> None:
    found = kaplan_loss.fit_params_tokens(N * of_params, D * of_tokens, L)
    expected = PUBLISHED | {"N_c": 6.4e13 * of_params, "D_c": 1.8e13 * of_tokens}
    assert {name: e.value for name, e in found.estimates.items()} == pytest.approx(expected, rel=1e-4)


def test_a_resource_that_never_binds_is_named() -> None:
    some = np.isin(D, TOKENS[:3])
    loss = kaplan_loss.predict(PUBLISHED | {"D_c": 1e6}, N[some], D[some])
    found = kaplan_loss.fit_params_tokens(N[some], D[some], _noisy(loss, 0.001))
    assert any(w["code"] == "unbound" and w["message"].startswith("tokens nowhere") for w in found.warnings)
    with pytest.raises(InputError, match=r"^kaplan-nd: 1 distinct tokens do not determine the law; give at least 3"):
        kaplan_loss.fit_params_tokens(N, np.full_like(D, 1e9), L)
