"""Hold-out: small errors where the law goes on, large ones where it does not, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import isoflop, kaplan, kaplan_loss, parametric, power_law, repeated
from analysis.outcome import Estimate, Outcome
from analysis.uncertainty.holdout import HoldOut, hold_out, predicted
from sweep.schema import InputError

CONSTANTS = {"A": 480.0, "B": 2000.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}
RNG = np.random.default_rng(3)
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 1e10, 8), np.geomspace(2e9, 3e11, 8)))
FLOPS = 6 * N * D


def of_loss(loss: np.ndarray, above: float) -> HoldOut:
    """The parametric law from one good start, so that the test is quick; the hold-out is what is tested."""
    start = np.array([[6.0, 0.35, 7.5, 0.37, 0.6]])

    def fit(rows: np.ndarray) -> Outcome:
        theta = parametric.fit_parametric(N[rows], D[rows], loss[rows], from_starts=start).parameters
        values = {name: Estimate(float(v[0])) for name, v in parametric.constants(theta).items()}
        return Outcome("parametric", values, int(rows.sum()))

    return hold_out(fit, {"params": N, "tokens": D, "loss": loss}, above)


def test_a_planted_law_predicts_what_was_held_out() -> None:
    loss = predicted("parametric", CONSTANTS, {"params": N, "tokens": D})
    loss = loss * np.exp(0.002 * RNG.standard_normal(len(N)))
    found = of_loss(loss, 1e21)
    assert (found.law, found.quantity) == ("parametric", "loss")
    assert (found.fitted, found.held) == ((FLOPS < 1e21).sum(), (FLOPS >= 1e21).sum())
    assert found.reach == pytest.approx(FLOPS.max() / FLOPS[FLOPS < 1e21].max())
    assert 0.001 < found.rms < 0.005
    assert found.median <= found.rms <= found.largest
    assert abs(found.mean) < 0.003
    np.testing.assert_allclose(found.points["measured"], loss[FLOPS >= 1e21])


def test_a_law_that_bends_above_the_threshold_is_shown_to() -> None:
    loss = predicted("parametric", CONSTANTS, {"params": N, "tokens": D})
    bent = loss * np.exp(0.05 * np.clip(np.log(FLOPS / 1e20), 0, None))
    found = of_loss(bent, 1e20)
    np.testing.assert_allclose(found.points["error"], (1e20 / found.points["flops"]) ** 0.05 - 1, rtol=1e-3)
    assert found.mean < -0.08
    assert found.largest > 0.2
    assert json.loads(json.dumps(found.to_json()))["errors"]["mean"] == pytest.approx(found.mean)


LAWS = {
    "power-law": lambda c: power_law.fit(c["x"], c["loss"], offset=True),
    "kaplan-n": lambda c: kaplan_loss.fit_params(c["params"], c["loss"]),
    "kaplan-d": lambda c: kaplan_loss.fit_tokens(c["tokens"], c["loss"]),
    "kaplan-c": lambda c: kaplan_loss.fit_flops(c["flops"], c["loss"]),
    "kaplan-ns": lambda c: kaplan.fit(c["params"], c["steps_min"], c["loss"]),
    "repeated": lambda c: repeated.fit(c["params"], c["tokens"], c["unique_tokens"], c["loss"]),
}


@pytest.mark.parametrize("name", LAWS)
def test_every_law_is_predicted_as_it_was_fitted(name: str) -> None:
    columns = {"params": N, "tokens": D, "flops": FLOPS, "x": FLOPS, "steps_min": D / 5e5}
    columns["unique_tokens"] = np.where(D > 2e10, D / np.where(N > 1e9, 8, 1), D)
    loss = predicted("parametric", CONSTANTS, {"params": N, "tokens": columns["unique_tokens"]})
    columns["loss"] = loss * (1 - 0.03 * (columns["unique_tokens"] < D))
    law = LAWS[name](columns)
    assert law.law == name
    values = {key: e.value for key, e in law.estimates.items()}
    np.testing.assert_allclose(predicted(name, values, columns), law.frames["points"]["fitted"], rtol=1e-9)
    draws = {key: np.array([[v], [v]]) for key, v in values.items()}
    assert predicted(name, draws, columns).shape == (2, len(N))


def test_eq_1_5_is_predicted_as_its_module_does() -> None:  # its fit takes seconds
    values = {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103}
    found = predicted("kaplan-nd", values, {"params": N, "tokens": D})
    np.testing.assert_allclose(found, kaplan_loss.predict(values, N, D))


def outcome(rows: np.ndarray) -> Outcome:
    """A law of N_opt, as isoflop and frontier give it: exact below 1e19, twice as large above."""
    flops = np.geomspace(1e18, 1e20, 9)
    optima = pd.DataFrame({"flops": flops, "params": 0.1 * flops**0.5 * np.where(flops < 1e19, 1, 2), "used": True})
    optima.loc[8, ["params", "used"]] = np.nan, False
    draws = {"a": np.array([0.5, 0.5, 0.5]), "N_coefficient": np.array([0.08, 0.1, 0.12])}
    return Outcome("isoflop", {"a": Estimate(0.5), "N_coefficient": Estimate(0.1)}, 9, draws=draws,
                   frames={"optima": optima})  # fmt: skip


def test_optima_above_are_compared_with_the_line_below() -> None:
    found = hold_out(outcome, {"flops": np.geomspace(1e18, 1e20, 36)}, 1.5e19)
    assert found.quantity == "params"
    np.testing.assert_allclose(found.points["error"], -0.5)
    assert (found.points["flops"] >= 1.5e19).all()
    assert (found.points["low"] < found.points["predicted"]).all()
    assert (found.points["high"] < found.points["measured"]).all()


def test_isoflop_minima_of_the_upper_budgets_are_predicted() -> None:
    budgets = np.repeat(np.geomspace(1e18, 3e20, 6), 7)
    best = 0.1 * budgets**0.5
    params = best * np.tile(np.geomspace(0.3, 3, 7), 6)
    loss = 30 * budgets**-0.05 * np.exp(0.03 * np.log(params / best) ** 2)

    def fit(rows: np.ndarray) -> Outcome:
        return isoflop.fit(params[rows], loss[rows], budgets[rows])

    found = hold_out(fit, {"params": params, "flops": budgets, "loss": loss}, 5e19)
    assert (found.law, found.quantity, found.fitted, found.held) == ("isoflop", "params", 28, 14)
    np.testing.assert_allclose(found.points["flops"], budgets[[28, 35]])
    np.testing.assert_allclose(found.points["error"], 0, atol=0.02)


@pytest.mark.parametrize(
    ("above", "message"), [(1e30, "0 of 64"), (FLOPS.max(), "1 of 64"), (1e15, "64 of 64"), (3e18, "points below")]
)
def test_a_side_that_is_too_small_is_refused(above: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_loss(np.full(len(N), 2.0), above)


def test_what_cannot_be_held_out_is_refused() -> None:
    with pytest.raises(InputError, match="no compute to split at"):
        hold_out(outcome, {"params": N}, 1e19)
    law = Outcome("critical-batch", {}, 3)
    with pytest.raises(InputError, match="no law of compute"):
        hold_out(lambda rows: law, {"flops": FLOPS}, 1e21)
    with pytest.raises(InputError, match="no optimum between two sizes"):
        hold_out(outcome, {"flops": np.geomspace(1e18, 3e20, 30)}, 2e20)
