"""The parts of a diagnosis together: what a law supports, in JSON, in words and as warnings."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import power_law
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.uncertainty.diagnostics import diagnose
from sweep.schema import InputError

X = np.geomspace(1e18, 1e21, 24)
NOISE = np.exp(0.004 * np.random.default_rng(4).standard_normal(24))


def test_a_clean_power_law_has_every_part_and_no_warning() -> None:
    y = 5 * X**-0.05 * NOISE

    def fit(rows: np.ndarray) -> Outcome:
        return power_law.fit(X[rows], y[rows])

    found = diagnose(fit(np.ones(24, dtype=bool)), fit, {"x": X, "flops": X, "y": y}, sigma=0.004, above=1e20)
    assert found.hold_out is not None
    assert found.hold_out.rms < 0.02
    assert found.influence is not None
    assert found.influence.name == "exponent"
    assert found.residuals is not None
    assert found.residuals.ratio == pytest.approx(1, rel=0.3)
    warnings = Warnings()
    found.warn("power-law", warnings)
    assert warnings == []
    assert set(json.loads(json.dumps(found.to_json(), allow_nan=False))) == {"residuals", "influence", "hold_out"}
    assert [line[:9].strip() for line in found.lines()] == ["residuals", "influence", "hold-out"]


def test_a_law_of_the_wrong_form_is_warned_of() -> None:
    y = 5 * X**-0.05 * NOISE * np.exp(0.02 * np.log(X / 3e19) ** 2)

    def fit(rows: np.ndarray) -> Outcome:
        return power_law.fit(X[rows], y[rows])

    found = diagnose(fit(np.ones(24, dtype=bool)), fit, {"flops": X, "x": X, "y": y}, sigma=0.004, above=1e20)
    warnings = Warnings()
    found.warn("power-law", warnings)
    assert [w["code"] for w in warnings] == ["residuals"]
    assert "residuals bend with x: they are higher at the ends" in warnings[0]["message"]
    assert "times the seed noise" in found.lines()[0]
    assert found.hold_out is not None
    assert found.hold_out.largest > 0.3


def test_of_a_frontier_whole_sizes_are_left_out() -> None:
    params = np.repeat([1e6, 2e6, 4e6, 8e6], 5)
    left: list[tuple[float, ...]] = []

    def fit(rows: np.ndarray) -> Outcome:
        left.append(tuple(np.unique(params[~rows])))
        return Outcome("frontier", {"a": Estimate(0.5 + 0.01 * params[rows].mean() / 1e6)}, 20)

    found = diagnose(fit(np.ones(20, dtype=bool)), fit, {"params": params, "loss": np.full(20, 3.0)})
    assert left[1:] == [(1e6,), (2e6,), (4e6,), (8e6,)]
    assert found.influence is not None
    assert found.influence.runs["run"][0] == "N=8e+06"
    assert found.residuals is None
    assert found.hold_out is None


def test_what_a_law_lacks_is_left_out_and_an_asked_hold_out_is_not() -> None:
    law = Outcome("critical-batch", {"B_star": Estimate(1e6)}, 20, frames={"points": pd.DataFrame()})
    found = diagnose(law, lambda rows: law, {"batch_tokens": X})
    assert (found.residuals, found.influence, found.hold_out) == (None, None, None)
    assert found.lines() == []
    with pytest.raises(InputError, match="no compute to split at"):
        diagnose(law, lambda rows: law, {"batch_tokens": X}, above=1e20)
