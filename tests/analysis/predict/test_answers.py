"""Predictions: closed forms through the JSON, joint intervals, doubts and refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from analysis import published as pub
from analysis.predict import Answer, parse, predict
from sweep.schema import InputError


def section(law: str, draws: dict[str, list[float]] | None = None, **estimates: float) -> dict[str, Any]:
    """A fit as isoloss writes it."""
    part = {name: {"value": value, "se": None, "low": None, "high": None} for name, value in estimates.items()}
    return {"law": law, "estimates": part, "level": 0.9} | ({"draws": draws} if draws else {})


def parametric(law: Any) -> dict[str, Any]:
    return section("parametric", A=law.A, B=law.B, E=law.E, alpha=law.alpha, beta=law.beta)


S = pub.SURFACE
KAPLAN = {
    "kaplan-ns": section("kaplan-ns", N_c=S.N_c, alpha_N=S.alpha_N, S_c=S.S_c, alpha_S=S.alpha_S),
    "critical-batch": section("critical-batch", B_star=pub.B_CRIT.coefficient, alpha_B=pub.ALPHA_B)
    | {"span": {"loss": [2.0, 4.0]}},
}


def value(answer: Answer, name: str) -> float:
    estimate = answer.values[name]
    assert estimate is not None
    return estimate.value


def test_chinchilla_through_the_json() -> None:
    [answer] = predict(parse(parametric(pub.APPROACH_3)), flops=pub.GOPHER_FLOPS).answers
    assert value(answer, "params") == pytest.approx(40.4e9, rel=0.01)
    assert value(answer, "tokens") / value(answer, "params") == pytest.approx(59, rel=0.01)
    loss = float(pub.APPROACH_3.loss(value(answer, "params"), value(answer, "tokens")))
    assert value(answer, "loss") == pytest.approx(loss)
    assert (answer.values["batch_tokens"], answer.values["steps"], answer.batch_from) == (None, None, None)
    assert all(e is None or e.low is None for e in answer.values.values())
    double = answer.wrong_size["double"]["loss"]
    assert double is not None
    wrong = float(pub.APPROACH_3.loss(2 * value(answer, "params"), value(answer, "tokens") / 2))
    assert double.value == pytest.approx(wrong - loss)


def test_laws_of_the_least_compute_answer_for_the_critical_batch() -> None:
    """A budget C is C_min = C/2; the run takes 2 S_min steps of B_crit tokens."""
    budget = 2 * pub.PF_DAY
    [answer] = predict(parse({"laws": KAPLAN}), flops=budget).answers
    assert answer.at_critical
    assert value(answer, "flops_min") == pytest.approx(pub.PF_DAY)
    n, d, b, s = (value(answer, name) for name in ("params", "tokens", "batch_tokens", "steps"))
    assert 6 * n * d == pytest.approx(budget)
    assert d == pytest.approx(b * s)
    assert s == pytest.approx(2 * value(answer, "steps_min"))
    assert b == pytest.approx(float(pub.B_CRIT(value(answer, "loss"))))
    assert float(S.loss(n, s / 2)) == pytest.approx(value(answer, "loss"))
    by_loss = predict(parse({"laws": KAPLAN}), loss=value(answer, "loss")).answers[0]
    assert value(by_loss, "flops") == pytest.approx(budget)
    by_size = predict(parse({"laws": KAPLAN}), params=n).answers[0]
    assert value(by_size, "flops") == pytest.approx(budget)
    assert value(by_size, "params") == n


def test_batch_of_other_laws_is_the_critical_one_at_their_loss() -> None:
    laws = {"parametric": parametric(pub.REFIT), "critical-batch": KAPLAN["critical-batch"]}
    [answer] = predict(parse({"laws": laws}), flops=1e21).answers
    assert not answer.at_critical
    assert answer.batch_from == "critical-batch"
    assert value(answer, "batch_tokens") == pytest.approx(float(pub.B_CRIT(value(answer, "loss"))))
    assert value(answer, "steps") == pytest.approx(value(answer, "tokens") / value(answer, "batch_tokens"))
    assert answer.warnings == ()
    [far] = predict(parse({"laws": laws}), flops=1e25).answers
    assert far.warnings == ("B_crit is known at losses 1.94 to 4.12, not at 1.91",)


def line_fits(rng: np.random.Generator, number: int, k: int) -> list[dict[str, Any]]:
    """`number` experiments that fit N = 0.1 C^0.5 to eight noisy optima over two decades of compute, as their JSON with
    k joint draws each: the line refitted to the residual noise around it, whose variance is redrawn."""
    x = np.linspace(np.log(1e17), np.log(1e19), 8)
    fits = []
    for y in math.log(0.1) + 0.5 * x + 0.2 * rng.standard_normal((number, 8)):
        slope, start = np.polyfit(x, y, 1)
        freedom = len(x) - 2
        total = float(((y - start - slope * x) ** 2).sum())
        sigma = np.sqrt(total / rng.chisquare(freedom, k))
        again = (start + slope * x)[:, None] + sigma * rng.standard_normal((8, k))
        slopes, starts = np.polyfit(x, again, 1)
        values = {"a": slope, "b": 1 - slope, "N_coefficient": np.exp(start), "D_coefficient": np.exp(-start) / 6}
        draws = {"a": slopes, "b": 1 - slopes, "N_coefficient": np.exp(starts), "D_coefficient": np.exp(-starts) / 6}
        fits.append(section("isoflop", {name: v.tolist() for name, v in draws.items()}, **values))
    return fits


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Far beyond the fitted compute, where slope and intercept must be drawn together."""
    number, flops = 300, 1e21
    inside = widths = apart = 0.0
    for fit in line_fits(np.random.default_rng(3), number, 300):
        [answer] = predict(parse(fit), flops=flops).answers
        size = answer.values["params"]
        assert size is not None
        assert size.low is not None
        assert size.high is not None
        inside += size.low < 0.1 * flops**0.5 < size.high
        widths += math.log(size.high / size.low)
        fit["draws"]["a"] = fit["draws"]["a"][::-1]  # no longer joint
        other = predict(parse(fit), flops=flops).answers[0].values["params"]
        assert other is not None
        assert other.low is not None
        assert other.high is not None
        apart += math.log(other.high / other.low)
    assert abs(inside - 0.9 * number) < 3.3 * math.sqrt(number * 0.09)  # 99.9% of the binomial
    assert apart > 5 * widths


def drawn(size: float, compute: float) -> dict[str, Any]:
    """An isoflop fit whose N lies within a few percent of size (C/compute)^0.5."""
    factors = np.linspace(0.97, 1.03, 41)
    n = size / compute**0.5
    draws = {"a": [0.5] * 41, "b": [0.5] * 41, "N_coefficient": (n * factors).tolist(),
             "D_coefficient": (1 / (6 * n * factors)).tolist()}  # fmt: skip
    fit = section("isoflop", draws, a=0.5, b=0.5, N_coefficient=n, D_coefficient=1 / (6 * n))
    return fit | {"span": {"flops": [compute / 100, compute]}}


def test_disagreement_and_extrapolation_are_said() -> None:
    both = {"group": "one"} | drawn(1e8, 1e19), {"group": "two"} | drawn(2e8, 1e19)
    prediction = predict(parse({"law": "isoflop", "groups": list(both)}), flops=1e21)
    assert prediction.warnings == (
        "approaches disagree on params; these intervals do not meet: isoflop (one) and isoflop (two)",
    )
    assert [a.extrapolation for a in prediction.answers] == pytest.approx([100, 100])
    for answer in prediction.answers:
        assert answer.warnings == ("extrapolates 100 times beyond the largest compute it was fitted on",)
    laws = {"isoflop": {"law": "isoflop", "conventions": {"kaplan": both[0] | {"convention": "kaplan"},
                                                          "total": both[1] | {"convention": "total"}}}}  # fmt: skip
    assert predict(parse({"laws": laws}), flops=1e21).warnings == ()  # two countings of one size
    inside = predict(parse(drawn(1e8, 1e19)), flops=5e18).answers[0]
    assert inside.extrapolation == pytest.approx(0.5)
    assert inside.warnings == ()
    below = predict(parse(drawn(1e8, 1e19)), flops=1e15).answers[0]
    assert below.warnings == ("extrapolates 100 times below the least compute it was fitted on",)
    far = predict(parse(drawn(1e8, 1e19)), flops=1.234e22).answers[0]
    assert far.warnings == ("extrapolates 1,234 times beyond the largest compute it was fitted on",)
    kinds = {"raw": drawn(1e8, 1e19), "adjusted": drawn(2e8, 1e19)}
    mixed = predict(parse({"law": "frontier", "kinds": kinds}), flops=1e19).warnings
    assert mixed == (
        "approaches disagree on params (training at B_crit and at the batch of the runs need not agree); these "
        "intervals do not meet: frontier raw and frontier adjusted",
    )
    alike = predict(parse({"law": "isoflop", "groups": [both[0], {"group": "same"} | drawn(1.01e8, 1e19)]}), flops=1e19)
    assert alike.warnings == ()


def test_draws_that_fail_or_never_reach_the_loss_are_counted() -> None:
    law = pub.REFIT
    names = ("A", "B", "E", "alpha", "beta")
    draws = {name: [float(getattr(law, name))] * 20 for name in names}
    draws["alpha"][3] = math.nan
    draws["E"][10:15] = [2.5] * 5  # a quarter never reach a loss of 2.4
    fit = section("parametric", draws, **{name: float(getattr(law, name)) for name in names})
    [answer] = predict(parse(fit), loss=2.4).answers
    flops = answer.values["flops"]
    assert flops is not None
    assert flops.low == pytest.approx(flops.value)
    assert flops.high == math.inf
    assert answer.to_json()["flops"]["high"] is None
    assert "1 of 20 draws have no optimum and are left out of the intervals" in answer.warnings


def test_json_is_plain_and_complete() -> None:
    laws = {"parametric": parametric(pub.REFIT), **KAPLAN, "isoflop": drawn(1e8, 1e19)}
    prediction = predict(parse({"laws": laws}), loss=2.5)
    data = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
    assert data["asked"] == {"loss": 2.5}
    assert [a["approach"] for a in data["approaches"]] == ["parametric", "kaplan-ns"]
    assert data["warnings"][0].startswith("isoflop: the file has no line of its loss")
    for approach in data["approaches"]:
        assert {"params", "tokens", "batch_tokens", "steps", "loss", "flops", "extrapolation", "wrong_size"} <= set(
            approach
        )
        assert approach["loss"] == {"value": 2.5, "low": None, "high": None}
        for side in ("double", "half"):
            assert approach["wrong_size"][side]["loss"]["value"] > 0
            assert approach["wrong_size"][side]["flops"]["value"] > 1


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"flops": 0.0}, "flops is 0; give a positive number"),
        ({"loss": -1.0}, "positive"),
        ({"params": math.inf}, "positive"),
        ({"flops": math.nan}, "positive"),
        ({}, "exactly one"),
        ({"flops": 1e20, "loss": 2.0}, "exactly one"),
        ({"loss": 1.8}, "no compute reaches this loss; its irreducible loss is 1.817"),
    ],
)
def test_questions_without_an_answer_are_one_line(asked: dict[str, float], what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        predict(parse(parametric(pub.REFIT)), **asked)
    assert "\n" not in str(caught.value)


def test_an_interval_holds_its_value() -> None:
    names = ("A", "B", "E", "alpha", "beta")
    draws = {name: [float(getattr(pub.REFIT, name))] * 20 for name in names}
    draws["E"] = [float(pub.REFIT.E) + 0.1 + 0.001 * k for k in range(20)]  # of a biased estimator
    fit = section("parametric", draws, **{name: float(getattr(pub.REFIT, name)) for name in names})
    [answer] = predict(parse(fit), flops=1e20).answers
    loss = answer.values["loss"]
    assert loss is not None
    assert loss.high is not None
    assert loss.low == loss.value < loss.high
