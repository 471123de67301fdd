"""The compute-optimal model of each law, against the papers' numbers and against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from analysis import published as pub
from analysis.predict import optimum as opt

BUDGETS = np.array([1e17, pub.GOPHER_FLOPS])


def constant(*values: float) -> list[np.ndarray]:
    return [np.array([v]) for v in values]


def hoffmann(law: Any) -> opt.Parametric:
    return opt.Parametric(*constant(law.A, law.B, law.E, law.alpha, law.beta))


def kaplan() -> opt.Surface:
    s = pub.SURFACE
    return opt.Surface(*constant(s.N_c, s.alpha_N, s.S_c, s.alpha_S, pub.B_CRIT.coefficient, pub.B_CRIT.exponent))


def lines(curvature: float = 0.02) -> opt.Lines:
    return opt.Lines(
        opt.Line(*constant(0.1, 0.5)),
        opt.Line(*constant(1 / 0.6, 0.5)),
        opt.Line(*constant(30.0, -0.05)),
        None,
        np.array([curvature]),
        False,
    )


LAWS = {"parametric": hoffmann(pub.REFIT), "surface": kaplan(), "lines": lines()}


@pytest.mark.parametrize(
    ("law", "params", "ratio"), [(pub.APPROACH_3, 40.4e9, 59), (pub.REFIT, 72.5e9, 18)], ids=["hoffmann", "besiroglu"]
)
def test_parametric_gives_the_published_optimum_at_gophers_budget(law: Any, params: float, ratio: float) -> None:
    best = hoffmann(law).at(np.array([pub.GOPHER_FLOPS]))
    assert best.params[0] == pytest.approx(params, rel=0.01)
    assert best.tokens[0] / best.params[0] == pytest.approx(ratio, rel=0.03)
    assert 6 * best.params[0] * best.tokens[0] == pytest.approx(pub.GOPHER_FLOPS)


@pytest.mark.parametrize("flops", BUDGETS)
def test_parametric_optimum_is_the_least_loss_at_its_compute(flops: float) -> None:
    law = pub.APPROACH_3
    found = minimize_scalar(lambda n: float(law.loss(math.exp(n), flops / 6 / math.exp(n))), bounds=(10, 35))
    best = hoffmann(law).at(np.array([flops]))
    assert best.loss is not None
    assert best.loss[0] == pytest.approx(found.fun, rel=1e-9)
    assert best.params[0] == pytest.approx(math.exp(found.x), rel=1e-3)


def surface_loss(params: float, flops: float) -> float:
    """Loss at C_min: Eq. 5.6 with S_min = C_min/(6 N B_crit(L)), which holds L on both sides."""

    def gap(ln_loss: float) -> float:
        loss = math.exp(ln_loss)
        return float(pub.SURFACE.loss(params, flops / (6 * params * pub.B_CRIT(loss)))) - loss

    return math.exp(brentq(gap, -3.0, 30.0, xtol=1e-14))


@pytest.mark.parametrize("flops", [1e17, pub.PF_DAY])
def test_surface_optimum_is_the_least_loss_at_its_least_compute(flops: float) -> None:
    found = minimize_scalar(lambda n: surface_loss(math.exp(n), flops), bounds=(10, 30))
    best = kaplan().at(np.array([flops]))
    assert best.loss is not None
    assert best.batch_tokens is not None
    assert best.loss[0] == pytest.approx(found.fun, rel=1e-9)
    assert best.params[0] == pytest.approx(math.exp(found.x), rel=1e-3)
    assert best.batch_tokens[0] == pytest.approx(float(pub.B_CRIT(best.loss[0])))
    assert 6 * best.params[0] * best.tokens[0] == pytest.approx(2 * flops)  # at B_crit, twice the least


def test_surface_costs_are_those_of_the_paper() -> None:
    """App. B.4 reads 1.16 and 1.20 at 0.6 and 2.2 times the best size, with Table 5's exponents."""
    own = opt.Surface(*constant(8.8e13, 0.076, 2.1e3, 0.76, 2.1e8, -1 / 0.21))
    best = own.at(np.array([1e18]))
    assert own.flops_of_wrong_size(best, 0.6)[0] == pytest.approx(1.16, abs=0.006)
    assert own.flops_of_wrong_size(best, 2.2)[0] == pytest.approx(1.20, abs=0.006)
    assert own.flops_of_wrong_size(best, 0.28)[0] == math.inf


@pytest.mark.parametrize("name", LAWS)
def test_budget_loss_and_size_lead_back_to_each_other(name: str) -> None:
    law, flops = LAWS[name], np.array([3e20])
    best = law.at(flops)
    assert best.loss is not None
    np.testing.assert_allclose(law.flops_for_loss(float(best.loss[0])), flops, rtol=1e-9)
    np.testing.assert_allclose(law.flops_for_params(float(best.params[0])), flops, rtol=1e-9)


def parametric_loss(params: float, flops: float) -> float:
    return float(pub.REFIT.loss(params, flops / (6 * params)))


def lines_loss(params: float, flops: float) -> float:
    best = lines().at(np.array([flops]))
    assert best.loss is not None
    return float(best.loss[0] * math.exp(0.02 * math.log(params / best.params[0]) ** 2))


DIRECT = {"parametric": parametric_loss, "surface": surface_loss, "lines": lines_loss}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_size_costs_what_direct_evaluation_says(name: str, factor: float) -> None:
    law, direct, flops = LAWS[name], DIRECT[name], 3e20
    best = law.at(np.array([flops]))
    assert best.loss is not None
    wrong, loss = float(factor * best.params[0]), float(best.loss[0])
    higher, ratio = law.loss_of_wrong_size(best, factor), law.flops_of_wrong_size(best, factor)
    assert higher is not None
    assert ratio is not None
    assert higher[0] == pytest.approx(direct(wrong, flops), rel=1e-9)
    assert higher[0] > loss
    needed = brentq(lambda x: direct(wrong, flops * math.exp(x)) - loss, 0.0, 3.0, xtol=1e-13)
    assert ratio[0] == pytest.approx(math.exp(needed), rel=1e-8)
    assert ratio[0] > 1


def test_what_cannot_be_reached_costs_infinite_compute() -> None:
    chinchilla = hoffmann(pub.APPROACH_3)
    assert chinchilla.flops_for_loss(pub.APPROACH_3.E)[0] == math.inf
    best = chinchilla.at(np.array([1e20]))
    assert chinchilla.flops_of_wrong_size(best, 0.05)[0] == math.inf  # its size alone costs more than the loss allows
    steep = lines(curvature=0.5)  # twice as small stays above the loss whatever the compute
    assert steep.flops_of_wrong_size(steep.at(np.array([1e20])), 0.5)[0] == math.inf


def test_draws_without_an_optimum_are_not_numbers() -> None:
    ends = np.array([0.34, -0.1]), np.array([0.28, 0.28])
    law = opt.Parametric(np.full(2, 400.0), np.full(2, 400.0), np.full(2, 1.7), *ends)
    best = law.at(np.array([1e20]))
    assert np.isnan(best.params).tolist() == [False, True]
    growing = opt.Lines(
        opt.Line(np.full(2, 1.0), np.array([0.5, -0.5])), opt.Line(*constant(1.0, 0.5)),
        opt.Line(np.full(2, 9.0), np.array([-0.1, 0.1])), None, None, False,
    )  # fmt: skip
    assert np.isnan(growing.flops_for_params(1e6)).tolist() == [False, True]
    assert np.isnan(growing.flops_for_loss(2.0)).tolist() == [False, True]
    assert growing.loss_of_wrong_size(growing.at(np.array([1e9])), 2.0) is None
    bad = opt.Surface(
        *(np.array([v, v]) for v in (6e13, 0.07, 2e3)), np.array([0.7, -0.7]), *(np.array([v, v]) for v in (2e8, -5.0))
    )
    assert np.isnan(bad.at(np.array([1e18])).params).tolist() == [False, True]
    assert np.isnan(bad.loss_of_wrong_size(bad.at(np.array([1e18])), 2.0)).tolist() == [False, True]
