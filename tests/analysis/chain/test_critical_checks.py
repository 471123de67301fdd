"""Warnings about B_crit: models that differ, cells that say little."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.chain.critical_checks import warn_dependence
from analysis.outcome import Warnings


def messages(shift: float, models: int = 12, replicates: int = 200) -> list[str]:
    """Laws of `models` models that differ by noise of 5%, and the last one by `shift` in ln B_crit as well."""
    rng = np.random.default_rng(0)
    names = [f"2x{k}" for k in range(models)]
    noise = 0.05 * rng.standard_normal((models, 1 + replicates))
    noise[:, 0] *= 0.5
    noise[-1] += shift
    own = {
        name: np.stack([9.0 + e, np.full(1 + replicates, -5.0)], axis=1) for name, e in zip(names, noise, strict=True)
    }
    own["2x0"][5:, 0] = np.nan  # known in too few replicates to be compared
    points = pd.DataFrame({"group": names, "target_loss": 2.5, "used": True})
    warnings = Warnings()
    warn_dependence(own, points, warnings)
    assert all(w["code"] == "depends_on_size" for w in warnings)
    return [w["message"] for w in warnings]


def test_of_many_pairs_chance_is_allowed_for_and_the_surest_is_named() -> None:
    assert messages(0.0) == []
    (message,) = messages(0.6)
    assert "2x11" in message
    assert "10 of 66 pairs" in message
    assert messages(0.6, models=3, replicates=0) == []
