"""Learning-rate and beta2 rules against published values and their definitions."""

from __future__ import annotations

import pytest

from sweep.rules import beta2_from_half_life, kaplan_lr, reference_lr, round_digits
from sweep.schema import InputError


@pytest.mark.parametrize(("params", "expected"), [(10**6, 1.31e-3), (10**9, 3.5e-4)])
def test_kaplan_equation_d1(params: int, expected: float) -> None:
    assert kaplan_lr(params) == pytest.approx(expected, rel=0.01)


def test_kaplan_rule_ends_above_1e10() -> None:
    assert kaplan_lr(10**10) > 0
    with pytest.raises(InputError, match=r"1\.3e\+10.*set optimizer\.lr"):
        kaplan_lr(13 * 10**9)


def test_reference_rule() -> None:
    tuned = dict(lr=8e-3, reference_d_model=32, reference_batch_tokens=2048, width_power=-1.0, batch_power=0.5)
    assert reference_lr(32, 2048, **tuned) == 8e-3
    assert reference_lr(64, 2048, **tuned) == pytest.approx(4e-3)
    assert reference_lr(32, 8192, **tuned) == pytest.approx(16e-3)


def test_beta2_forgets_half_after_its_half_life_at_any_batch() -> None:
    for batch in (256, 4096, 100_000):
        assert beta2_from_half_life(batch, 1e5) ** (1e5 / batch) == pytest.approx(0.5)
    with pytest.raises(InputError, match="positive"):
        beta2_from_half_life(256, 0)


def test_rounding_keeps_six_digits_at_any_size() -> None:
    assert round_digits(0.00123456789) == 0.00123457
    assert round_digits(1.0 / 3 * 1e-9) == 3.33333e-10
    assert round_digits(0.0) == 0.0
