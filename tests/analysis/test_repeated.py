"""Repeated data: the published worth of passes, planted laws, and what a table must hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis import published as pub
from analysis import repeated
from sweep.schema import InputError

N, U, PASSES = (
    a.ravel() for a in np.meshgrid(np.geomspace(1e7, 5e9, 5), np.array([1e8, 1e9, 1e10]), [1.0, 4.0, 16.0, 60.0])
)
D = U * PASSES
L = repeated.predict(pub.REPEATED, N, D, U)
PUBLISHED = {"A": 520.82, "alpha": 0.35266, "B": 1487.7, "beta": 0.35266, "E": 1.86914, "R_D": 15.38776, "R_N": 5.30974}


def _noisy(seed: int = 0) -> np.ndarray:
    return np.asarray(L * np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(L))))


def test_worth_of_passes_as_published() -> None:
    worth = repeated.effective_tokens([4, 16, 40], 1, pub.REPEATED.R_D) / [4, 16, 40]
    assert worth == pytest.approx([0.93, 0.66, 0.38], abs=0.005)
    assert repeated.effective_tokens(1e12, 1.0, pub.REPEATED.R_D) == pytest.approx(16.4, abs=0.02)
    assert repeated.effective_tokens(0.5, 1.0, pub.REPEATED.R_D) == 0.5  # less than one pass
    assert repeated.effective_tokens(3.0, 1.0, 1e9) == pytest.approx(3.0)  # passes that lose nothing


def test_size_for_the_unique_tokens_is_that_of_equation_17() -> None:
    assert repeated.best_params(1e9, pub.REPEATED.base) / 1e9 == pytest.approx(0.051, abs=5e-4)
    base = pub.APPROACH_3  # where alpha and beta differ: the optimum of some compute has these tokens
    assert repeated.best_params(base.tokens_opt(1e21), base) == pytest.approx(float(base.params_opt(1e21)))


def test_one_pass_and_the_best_size_follow_the_base() -> None:
    tokens = 1e10
    size = repeated.best_params(tokens, pub.REPEATED.base) * np.array([0.1, 1.0])
    np.testing.assert_allclose(repeated.predict(pub.REPEATED, size, tokens, 1e12), pub.REPEATED.base.loss(size, tokens))
    assert repeated.predict(pub.REPEATED, 30 * size[1], tokens, 1e12) > pub.REPEATED.base.loss(30 * size[1], tokens)


def test_planted_law_comes_back_all_at_once() -> None:
    found = repeated.fit(N, D, U, L)
    assert {name: e.value for name, e in found.estimates.items()} == pytest.approx(PUBLISHED, rel=1e-4)
    assert not found.warnings
    law = repeated.law_of({name: e.value for name, e in found.estimates.items()})
    np.testing.assert_allclose(repeated.predict(law, N, D, U), L, rtol=1e-9)


def test_units_move_only_their_constant() -> None:
    one = {name: e.value for name, e in repeated.fit(N, D, U, L).estimates.items()}
    found = {name: e.value for name, e in repeated.fit(N * 1e-3, D * 1e-6, U * 1e-6, L).estimates.items()}
    moved = {"A": one["A"] * 1e-3 ** one["alpha"], "B": one["B"] * 1e-6 ** one["beta"]}
    assert found == pytest.approx(one | moved, rel=1e-4)


def test_repeats_alone_with_the_base_given() -> None:
    """The paper's way; the single passes are not needed."""
    many = PASSES > 1
    found = repeated.fit(N[many], D[many], U[many], _noisy()[many], base=pub.REPEATED.base, bootstrap=60, seed=1)
    assert set(found.estimates) == {"R_D", "R_N"}
    for name, truth in (("R_D", 15.39), ("R_N", 5.31)):
        e = found.estimates[name]
        assert e.se is not None
        assert abs(e.value - truth) < 4 * e.se
    assert found.law == "repeated"
    assert set(found.span) == {"params", "tokens", "unique_tokens", "passes", "loss"}
    json.dumps(found.to_json(), allow_nan=False)


def test_standard_errors_of_squared_loss_are_those_of_the_bootstrap() -> None:
    """On independent rows both say the same, within what 45 rows allow."""
    plain = repeated.fit(N, D, U, _noisy(), kind="squared", base=pub.REPEATED.base).estimates
    drawn = repeated.fit(N, D, U, _noisy(), kind="squared", base=pub.REPEATED.base, bootstrap=200).estimates
    for name in ("R_D", "R_N"):
        assert plain[name].se is not None
        assert drawn[name].se == pytest.approx(plain[name].se, rel=0.5)


def test_small_models_say_nothing_of_excess_parameters() -> None:
    small = np.broadcast_to(1e5, N.shape) * (1 + np.arange(len(N)) % 3)
    loss = repeated.predict(pub.REPEATED, small, D, U)
    found = repeated.fit(small, D, U, loss)
    assert "R_N" not in found.estimates
    assert found.estimates["R_D"].value == pytest.approx(15.39, rel=1e-3)
    assert [w["code"] for w in found.warnings] == ["no_excess_parameters"]


def test_passes_worth_everything_and_nothing_are_said() -> None:
    small = np.full_like(N, 1e5)
    found = repeated.fit(small, D, U, pub.REPEATED.base.loss(small, D), base=pub.REPEATED.base)
    assert "no_decay" in {w["code"] for w in found.warnings}
    found = repeated.fit(small, 2 * U, U, pub.REPEATED.base.loss(small, U), base=pub.REPEATED.base)
    assert {"no_worth", "few_passes"} <= {w["code"] for w in found.warnings}
    json.dumps(found.to_json(), allow_nan=False)


def test_tables_that_do_not_determine_it_are_refused() -> None:
    once = PASSES == 1
    with pytest.raises(InputError, match=r"^repeated: 0 rows pass over their data more than once .*'parametric'"):
        repeated.fit(N[once], D[once], U[once], L[once])
    with pytest.raises(InputError, match=r"0 rows of 0 sizes at a single pass do not determine A, B, E"):
        repeated.fit(N[~once], D[~once], U[~once], L[~once])
    with pytest.raises(InputError, match="unique_tokens must be positive"):
        repeated.fit(N, D, -U, L)


def test_allocation_with_enough_and_with_scarce_data() -> None:
    flops, base = 1e21, pub.REPEATED.base
    params, tokens, loss = repeated.allocate(pub.REPEATED, flops, 1e12)
    assert params == pytest.approx(float(base.params_opt(flops)), rel=1e-4)
    assert tokens == pytest.approx(float(base.tokens_opt(flops)), rel=1e-4)
    for unique in (1e10, 1e9):
        n, d, scarce = repeated.allocate(pub.REPEATED, flops, unique)
        assert 6 * n * d == pytest.approx(flops)
        assert n < params
        assert d / unique > tokens / unique
        assert scarce > loss
        near = repeated.predict(pub.REPEATED, n * np.array([0.97, 1.03]), d / np.array([0.97, 1.03]), unique)
        assert (near > scarce).all()


def test_a_base_that_is_no_law_is_refused() -> None:
    base = pub.Parametric(A=1.0, B=2.0, E=3.0, alpha=4.0, beta=-5.0, source="none")
    with pytest.raises(InputError, match="must be positive"):
        repeated.fit(*np.ones((4, 8)), base=base)
