"""Intervals hold the truth as often as they say: a small version of the benchmark, and the pieces it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.outcome import Estimate
from analysis.uncertainty.calibration import Judged, binomial_band, coverage
from analysis.uncertainty.dense import dense_optimum
from analysis.uncertainty.labels import label, verdicts
from analysis.uncertainty.scenarios import SCENARIOS

SWEEPS, REPLICATES = 20, 50
# Few sizes at few budgets: that intervals of one sweep fall together is the rule, so each quantity is judged alone.
LOW, HIGH = binomial_band(SWEEPS)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_intervals_hold_the_truth_as_often_as_a_binomial_variable_would(scenario: str) -> None:
    rows = [row for seed in range(SWEEPS) for row in SCENARIOS[scenario](1000 + seed, REPLICATES)]
    table = coverage(row for row in rows if " point." not in row.quantity and " target." not in row.quantity)
    assert len(table) >= 15
    known = table[table["intervals"] == SWEEPS]
    assert len(known) >= 15
    held = (known["coverage"] * SWEEPS).round()
    assert ((held >= LOW) & (held <= HIGH)).all(), known[(held < LOW) | (held > HIGH)].to_string()


def test_coverage_counts_misses_on_either_side() -> None:
    intervals = [(1.0, 3.0), (2.5, 3.0), (0.0, 1.0), (1.5, 2.5)]
    rows = [Judged("a.b", 2.0, Estimate((low + high) / 2, 1.0, low, high)) for low, high in intervals]
    table = coverage(rows).iloc[0]
    assert (table["coverage"], table["below"], table["above"]) == (0.5, 0.25, 0.25)
    assert table["mean"] == np.mean([np.mean(pair) for pair in intervals])
    assert not table["calibrated"]


def test_a_band_of_a_thousand_holds_nine_hundred() -> None:
    low, high = binomial_band(1000)
    assert low < 900 < high
    assert low > 860
    assert high < 935


def test_the_dense_optimum_of_hoffmanns_law_is_its_closed_form() -> None:
    a, b, e, alpha, beta = 20.0, 400.0, 1.2, 0.35, 0.4
    params, at = np.geomspace(1e3, 1e6, 6), np.log(np.geomspace(1e11, 1e13, 5))

    def ln_loss(ln_n: float, ln_d: np.ndarray) -> np.ndarray:
        return np.log(e + a * np.exp(-alpha * ln_n) + b * np.exp(-beta * ln_d))

    found = dense_optimum(ln_loss, params, 6 * params, None, None, at)
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    expected = np.log(g) + beta / (alpha + beta) * (at - np.log(6))
    np.testing.assert_allclose(found.ln_n, expected, atol=5e-3)
    np.testing.assert_allclose(found.ln_l, ln_loss_at(ln_loss, expected, at), atol=2e-5)


def ln_loss_at(ln_loss: object, ln_n: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of the optimum at each compute value."""
    return np.array([ln_loss(n, np.array([c - np.log(6) - n]))[0] for n, c in zip(ln_n, at, strict=True)])  # type: ignore[operator]


def test_a_quantity_whose_coverage_left_the_band_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.uncertainty import labels

    monkeypatch.setattr(labels, "verdicts", lambda: {"isoflop.a": False, "isoflop.b": True})
    known = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = label("isoflop", {"a": known, "b": known, "c": known, "d": {"value": 0.5, "low": None, "high": None}})
    assert [e.get("calibrated", "none") for e in found.values()] == [False, True, None, "none"]


def test_the_shipped_table_names_quantities_that_exist() -> None:
    assert all("." in name for name in verdicts())
