"""Which intervals may be trusted: the shipped table of coverages, written by `scripts/bench_calibration.py`.

Quantities are named "law.estimate" as the chain derives them and "fit law.estimate" where a law is fitted on its own.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

TABLE = "calibration.csv"


@cache
def verdicts() -> dict[str, bool]:
    """Quantity -> whether its nominal 90% intervals held the truth in 85% to 95% of the synthetic sweeps of every
    scenario that judged it."""
    table = files("analysis.uncertainty").joinpath(TABLE)
    if not table.is_file():
        return {}
    found: dict[str, bool] = {}
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["quantity"]] = found.get(row["quantity"], True) and row["calibrated"] == "True"
    return found


def label(law: str, estimates: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | bool | None]]:
    """The JSON of a law's estimates, those with an interval with "calibrated": true or false by the table, null where
    it does not judge them."""
    found = verdicts()
    return {
        name: dict(e) if e.get("low") is None else {**e, "calibrated": found.get(f"{law}.{name}")}
        for name, e in estimates.items()
    }
