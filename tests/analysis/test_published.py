"""Published constants against the numbers the papers print, and their laws against independent solutions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from analysis import published as pub


def test_optimal_sizes_meet_at_a_quarter_of_a_pf_day() -> None:
    meet = brentq(lambda c: float(pub.N_OPT(c) - pub.N_FIXED_BATCH(c)), 1e-3, 10)
    assert meet == pytest.approx(0.25, rel=0.01)
    assert float(pub.N_OPT(1e-8) / pub.N_FIXED_BATCH(1e-8)) == pytest.approx(12.9, rel=0.005)
    assert float(pub.N_OPT(1e-1) / pub.N_FIXED_BATCH(1e-1)) == pytest.approx(1.15, rel=0.005)


def test_steps_of_the_two_frontiers() -> None:
    compute = [1e-8, 1e-5, 1e-1]
    np.testing.assert_allclose(pub.S_OPT(compute), [3.1e3, 3.8e3, 5.0e3], rtol=0.01)
    np.testing.assert_allclose(pub.fixed_batch_steps(compute), [1.9e3, 4.3e3, 1.30e4], rtol=0.01)


def test_contributions_over_a_billion() -> None:
    factors = pub.contribution_factors(1e9)
    assert factors["N"] == pytest.approx(3.7e6, rel=0.01)
    assert factors["B"] == pytest.approx(145, rel=0.01)
    assert factors["S"] == pytest.approx(1.9, rel=0.03)
    assert math.prod(factors.values()) == pytest.approx(1e9)


def test_table_6_is_consistent() -> None:
    pf_days = 6 * pub.N_OPT.coefficient * pub.B_OPT.coefficient * pub.S_OPT.coefficient / 8.64e19
    assert pf_days == pytest.approx(0.975, rel=0.001)


@pytest.mark.parametrize(
    ("params", "losses"),
    [(1e6, (4.38, 4.16, 4.07)), (1e7, (3.80, 3.56, 3.44)), (1e8, (3.37, 3.09, 2.94)), (1e9, (3.05, 2.74, 2.55))],
)
def test_loss_at_fixed_steps(params: float, losses: tuple[float, ...]) -> None:
    steps = np.array([1e4, 10**4.5, 1e5])
    np.testing.assert_allclose(pub.loss_at_steps(params, steps), losses, atol=0.006)


def test_bisection_agrees_with_another_solver() -> None:
    """The implicit law in its own words: S_min = S/(1 + B_crit(L)/B) at C = 6·N·B·S."""
    for params, pf_days in ((3e4, 1e-5), (2e7, 1e-2), (1e9, 1.0)):
        steps = pf_days * 8.64e19 / (6 * params * 2**19)

        def excess(loss: float, params: float = params, steps: float = steps) -> float:
            steps_min = steps / (1 + 2.1e8 / loss ** (1 / 0.21) / 2**19)
            return (6.5e13 / params) ** 0.077 + (2.1e3 / steps_min) ** 0.76 - loss

        assert float(pub.loss_at_compute(params, pf_days)) == pytest.approx(brentq(excess, 1, 100), rel=1e-9)


@pytest.mark.parametrize(
    ("pf_days", "params", "loss"),
    [
        (1e-5, 4.9e4, 5.56),
        (1e-4, 3.6e5, 4.76),
        (1e-3, 2.5e6, 4.11),
        (1e-2, 1.6e7, 3.56),
        (0.1, 8.9e7, 3.11),
        (1, 4.9e8, 2.73),
    ],
)
def test_minimum_at_fixed_compute(pf_days: float, params: float, loss: float) -> None:
    best = minimize_scalar(
        lambda x: float(pub.loss_at_compute(math.exp(x), pf_days)),
        bounds=(5, 25),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert math.exp(best.x) == pytest.approx(params, rel=0.05)
    assert best.fun == pytest.approx(loss, abs=0.006)


def test_critical_batch_doubles_for_thirteen_percent() -> None:
    assert float(pub.B_CRIT(0.87 * 3) / pub.B_CRIT(3)) == pytest.approx(1.94, abs=0.005)
    assert float(pub.B_CRIT(5)) == pytest.approx(9.9e4, rel=0.01)
    assert float(pub.B_CRIT(3)) == pytest.approx(1.12e6, rel=0.01)


def test_rounded_compute_laws_cross_where_noted() -> None:
    for raw, adjusted, where in ((pub.L_OF_C, pub.L_OF_C_MIN, 0.010), (pub.L_OF_C_LEGEND, pub.L_OF_C_MIN_LEGEND, 0.53)):
        cross = brentq(lambda c, r=raw, a=adjusted: float(r(c) - a(c)), 1e-4, 10)
        assert cross == pytest.approx(where, rel=0.06)


def test_steps_min_inverts_the_surface() -> None:
    steps = np.geomspace(1e3, 1e6, 5)
    np.testing.assert_allclose(pub.SURFACE.steps_min(1e8, pub.SURFACE.loss(1e8, steps)), steps)
    assert np.isnan(pub.SURFACE.steps_min(1e8, 2.0))  # below what that size can reach


def test_data_surface_tends_to_its_limits() -> None:
    assert float(pub.DATA_SURFACE.loss(1e30, 1e9)) == pytest.approx((1.8e13 / 1e9) ** 0.103, rel=1e-3)
    assert float(pub.DATA_SURFACE.loss(1e8, 1e30)) == pytest.approx((6.4e13 / 1e8) ** 0.076, rel=1e-3)


def test_kaplan_line_is_what_hoffmann_prints() -> None:
    assert float(pub.KAPLAN_LINE(1e21)) == pytest.approx(4.683e9, rel=2e-4)
    assert float(pub.KAPLAN_LINE(pub.GOPHER_FLOPS)) == pytest.approx(485e9, rel=0.002)


def test_approach_3_at_gophers_budget() -> None:
    size, tokens = float(pub.APPROACH_3.params_opt(5.76e23)), float(pub.APPROACH_3.tokens_opt(5.76e23))
    assert size == pytest.approx(40.4e9, rel=0.002)
    assert tokens / size == pytest.approx(59, abs=0.5)
    assert 6 * size * tokens == pytest.approx(5.76e23)
    assert float(pub.APPROACH_3_ROUNDED.params_opt(5.76e23)) == pytest.approx(32.2e9, rel=0.002)


@pytest.mark.parametrize("law", [pub.APPROACH_3, pub.REFIT])
def test_optimum_is_the_minimum(law: pub.Parametric) -> None:
    best = minimize_scalar(
        lambda x: float(law.loss(math.exp(x), 1e21 / (6 * math.exp(x)))),
        bounds=(18, 27),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert float(law.params_opt(1e21)) == pytest.approx(math.exp(best.x), rel=1e-3)


def test_contour_has_one_loss() -> None:
    params, tokens = pub.APPROACH_3.contour(2.5, np.linspace(0.01, 0.99, 25))
    np.testing.assert_allclose(pub.APPROACH_3.loss(params, tokens), 2.5)


def test_lines_pass_through_the_printed_optima() -> None:
    """Within what the paper's two digits leave; its own approach 3 drifts from Eq. 4 by up to 7% at 10T."""
    for params, first, second, third in pub.OPTIMA:
        assert float(pub.APPROACH_1(first)) == pytest.approx(params, rel=0.012)
        assert float(pub.APPROACH_2(second)) == pytest.approx(params, rel=0.04)
        assert float(pub.APPROACH_3.params_opt(third)) == pytest.approx(params, rel=0.08)


def test_order_of_the_lines() -> None:
    third = pub.APPROACH_3.params_opt
    for flops in (1e21, 1e23, 1e25):
        assert float(pub.APPROACH_1(flops)) > float(pub.APPROACH_2(flops)) > float(third(flops))
    assert float(third(1e17)) > float(pub.APPROACH_2(1e17)) > float(pub.APPROACH_1(1e17))
    meet = brentq(lambda c: float(pub.APPROACH_1(c) - pub.KAPLAN_LINE(c)), 1e18, 1e22)
    assert meet == pytest.approx(1.2e20, rel=0.03)


def test_stars_stand_where_the_paper_has_them() -> None:
    stars = {s.name: s for s in pub.STARS}
    assert stars["Chinchilla"].flops == stars["Gopher"].flops == 5.76e23
    assert stars["GPT-3"].flops == pytest.approx(3.15e23)
    assert stars["MT-NLG"].flops == pytest.approx(8.59e23, rel=1e-3)
    chinchilla = stars["Chinchilla"]
    assert chinchilla.params == pytest.approx(float(pub.APPROACH_1(chinchilla.flops)), rel=0.05)
    assert chinchilla.params == pytest.approx(float(pub.APPROACH_2(chinchilla.flops)), rel=0.12)
    assert chinchilla.params / float(pub.APPROACH_3.params_opt(chinchilla.flops)) == pytest.approx(1.7, abs=0.05)
    for name in ("Gopher", "GPT-3", "MT-NLG"):
        assert float(pub.APPROACH_1(stars[name].flops)) < stars[name].params < float(pub.KAPLAN_LINE(stars[name].flops))


def test_every_law_says_where_it_is_from() -> None:
    laws = [v for v in vars(pub).values() if dataclasses.is_dataclass(v) and hasattr(v, "source")]
    assert len(laws) > 30
    assert all(law.source for law in laws)
    assert all(isinstance(text, str) and len(text) > 20 for text in pub.NOTES.values())


def test_section_6_contradicts_table_6_as_noted() -> None:
    """The tokens of 1 PF-day at the optimum: 2 C_min/(6 N)."""
    tokens = 2 * 8.64e19 / (6 * float(pub.N_OPT(1.0)))
    assert tokens == pytest.approx(2.2e10, rel=0.01)
    assert float(pub.D_OPT(1.0)) == pytest.approx(tokens, rel=0.1)
    assert float(pub.D_OPT_SECTION_6(1.0)) == pytest.approx(4e10)
    implied = pub.ALPHA_C_MIN_SECTION_6 / 0.076
    assert implied == pytest.approx(pub.N_OPT_EXPONENT_SECTION_6, abs=0.005)


def test_besiroglus_fits() -> None:
    """a = 0.513 as printed, 0.514 at the Huber minimum, 0.565 with the outliers; values inside their intervals."""
    assert pub.REFIT.a == pytest.approx(0.513, abs=5e-4)
    assert pub.REFIT_HUBER.a == pytest.approx(0.5139, abs=5e-5)
    assert pub.REFIT_ALL_POINTS.a == pytest.approx(0.5646, abs=5e-5)
    for name, interval in pub.REFIT_95.items():
        assert interval.value == getattr(pub.REFIT, name)
        assert interval.low < interval.value < interval.high
    size = float(pub.REFIT.params_opt(pub.GOPHER_FLOPS))
    assert size == pytest.approx(72.5e9, rel=0.02)
    assert float(pub.REFIT.tokens_opt(pub.GOPHER_FLOPS)) / size == pytest.approx(18, abs=0.5)


def test_approach_1_lies_outside_its_own_interval_as_noted() -> None:
    b = pub.EXPONENTS[1].b
    assert not b.low <= b.value <= b.high
    for approach in (1, 2):
        a = pub.EXPONENTS[approach].a
        assert a.low <= a.value <= a.high
    assert pub.APPROACH_3.a == pytest.approx(pub.EXPONENTS[3].a.value, abs=0.005)


def test_porians_steps_lead_from_kaplan_to_hoffmann() -> None:
    a = [step.refinedweb.value for step in pub.STEPS[:5]]
    assert a == sorted(a, reverse=True)
    assert (a[0], a[-1]) == (0.835, 0.497)
    for step in pub.STEPS:
        assert step.refinedweb.low < step.refinedweb.value < step.refinedweb.high
    assert float(pub.PORIAN_BATCH(1.08e8)) == pytest.approx(160)
    assert float(pub.PORIAN_RATE(1.08e8)) == pytest.approx(0.0047)
    assert float(pub.PORIAN_BATCH_FIT(1.08e8)) == pytest.approx(160, rel=0.05)
    assert float(pub.PORIAN_RATE_FIT(1.08e8)) == pytest.approx(0.0047, rel=0.05)


def test_zhangs_three_formulas_agree_at_151_million() -> None:
    """Sequences of 512 tokens; N and D in millions, 20 tokens a parameter and 3.072B tokens."""
    sizes = pub.ZHANG_CHINCHILLA(151), pub.ZHANG_FIXED_TOKENS(151), pub.ZHANG_FIXED_SIZE(3072)
    assert [float(s) for s in sizes] == pytest.approx([985, 961, 997], abs=1.5)


def test_rules_for_a_budget() -> None:
    assert pub.DEEPSEEK_M_OPT.exponent + pub.DEEPSEEK_D_OPT.exponent == pytest.approx(1)
    # C = M D at the optimum.
    assert float(pub.DEEPSEEK_M_OPT(1e20) * pub.DEEPSEEK_D_OPT(1e20)) == pytest.approx(1e20, rel=0.01)
    assert float(pub.step_law_rate(1e9, 2e10)) == pytest.approx(1.79 * 1e9**-0.713 * 2e10**0.307)
    assert float(pub.MINICPM_BATCH(2.5)) == pytest.approx(1.21e9 / 2.5**6.24)


def test_repeated_law_rounds_to_what_is_printed() -> None:
    law, rounded = pub.REPEATED.base, pub.REPEATED_ROUNDED.base
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(rounded, name), rel=0.01), name
