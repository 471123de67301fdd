"""Which intervals may be trusted: the shipped table of coverages, written by `scripts/bench_calibration.py`."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

TABLE = "calibration.csv"


@cache
def not_calibrated() -> frozenset[str]:
    """Quantities, as "law.name", whose nominal 90% intervals held the truth in less than 85% or more than 95% of the
    synthetic sweeps of some scenario."""
    table = files("analysis.uncertainty").joinpath(TABLE)
    if not table.is_file():
        return frozenset()
    with table.open(encoding="utf-8") as file:
        return frozenset(row["quantity"] for row in csv.DictReader(file) if row["calibrated"] != "True")


def label(law: str, estimates: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | bool | None]]:
    """The JSON of a law's estimates, with "calibrated": false where the table says so."""
    poor = not_calibrated()
    return {n: {**e, "calibrated": False} if f"{law}.{n}" in poor else dict(e) for n, e in estimates.items()}
