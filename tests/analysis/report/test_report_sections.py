"""The report's tables say what the laws, their diagnoses and the table hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.chain.results import Conventions, no_exponents
from analysis.outcome import Estimate
from analysis.report.checks import checks, conventions_table, exponents_table
from analysis.report.laws import law_tables
from analysis.report.tables import MOST_ROWS, exclusions, run_table


def test_checks_hold_the_diagnoses(full: Any) -> None:
    found, laws = checks(full.laws), full.laws.diagnostics
    assert found is not None
    assert set(laws) == {"parametric", "isoflop", "raw", "adjusted"}
    assert f"{laws['parametric'].residuals.rms:.2%} rms" in found.lines[0]
    assert found.lines[1:] == laws["parametric"].residuals.findings
    assert [row["mean residual, by thirds of"] for row in found.regions] == ["N", "D", "C"]
    assert all("nan" not in cell for row in [*found.regions, *found.moved] for cell in row.values())
    assert [row["law"] for row in found.held] == ["parametric fit", "isoFLOP minima"]
    assert found.held[0]["error rms"] == f"{laws['parametric'].hold_out.rms:.1%}"
    assert [row["law"] for row in found.moved] == [name for name, _ in found.runs]
    frontier = laws["adjusted"].influence
    row = next(row for row in found.moved if row["law"] == "frontier, adjusted to C_min")
    first = frontier.runs[frontier.runs["without"].notna()].iloc[0]
    assert row["moves it most"].startswith(f"{first['run']} (N = ")
    assert f"({first['shift_se']:+.1f} standard errors)" in row["without it"]


def test_nothing_diagnosed_is_no_section(poor: Any) -> None:
    assert poor.laws.diagnostics == {}
    assert checks(poor.laws) is None


def test_a_law_that_needs_a_size_says_so(full: Any) -> None:
    diagnosis = full.laws.diagnostics["raw"]
    runs = diagnosis.influence.runs.assign(without=np.nan, shift=np.nan, shift_se=np.nan)
    broken = replace(diagnosis, influence=replace(diagnosis.influence, runs=runs))
    found = checks(replace(full.laws, diagnostics={"raw": broken}))
    assert found is not None
    assert found.moved[0]["moves it most"] == "–"
    assert {row["exponent"] for row in found.runs[0][1]} == {"cannot be fitted"}


def test_measured_and_derived_exponents_stand_side_by_side() -> None:
    assert exponents_table(no_exponents()) == []
    row = {"quantity": "N", "measured": 0.7, "measured_low": 0.6, "measured_high": 0.8, "derived": 0.5,
           "derived_low": None, "derived_high": np.nan, "apart": True}  # fmt: skip
    cells = exponents_table(pd.DataFrame([row]))[0]
    assert list(cells.values()) == ["N", "0.700 [0.600, 0.800]", "0.500", "intervals apart"]


def test_a_bias_is_shown_where_one_is_known(full: Any) -> None:
    parametric = replace(
        full.laws.parametric, estimates={"a": Estimate(0.5, 0.1, 0.4, 0.6, -0.0123), "G": Estimate(1.0)}
    )
    tables = {table.title: table for table in law_tables(replace(full.laws, parametric=parametric), {})}
    first, second = tables["Parametric fit"].rows
    assert tables["Parametric fit"].biased
    assert (first.value, first.interval, first.bias) == ("0.5000", "[0.400, 0.600]", "-0.012")
    assert (second.interval, second.bias, second.published) == ("–", "", "")
    assert "0.51 (Besiroglu)" in first.published


def test_what_was_left_out_is_counted_with_its_reason(full: Any) -> None:
    assert exclusions(full.laws, full.table) == []
    tokens = full.table.runs["tokens"].astype(float)
    runs = full.table.runs.assign(warmup_tokens=0.01 * tokens)
    dropped = {"x": "failed", **{f"r{i:02}": "diverged" for i in range(12)}}
    laws = replace(full.laws, runs=full.laws.runs.iloc[2:])
    rows = exclusions(laws, replace(full.table, runs=runs, dropped=dropped))
    assert rows[0] == {"left out": "1 run", "reason": "failed", "which": "x"}
    assert rows[1]["left out"] == "12 runs"
    assert rows[1]["which"] == "r00, r01, r02, r03, r04, r05, r06, r07, ..."
    assert rows[2]["left out"] == "2 runs"
    assert rows[2]["which"] == ", ".join(full.laws.runs["run_id"][:2])
    share = full.table.curves["tokens"].astype(float) / full.table.curves["run_id"].astype(str).map(
        dict(zip(runs["run_id"], tokens, strict=True))
    )
    assert rows[3]["left out"] == f"{(share < 0.01).sum()} evaluations"
    assert (share < 0.01).sum() > 10


def test_a_table_of_very_many_runs_is_cut(full: Any) -> None:
    many = pd.concat([full.table.runs] * (1 + MOST_ROWS // len(full.table.runs)))
    assert len(run_table(replace(full.table, runs=many))) == MOST_ROWS
    assert len(run_table(full.table)) == len(full.table.runs)


def test_the_same_runs_counted_in_other_ways() -> None:
    assert conventions_table(None) == []
    rows = pd.DataFrame(
        [("frontier", "kaplan", "N = matrices", 0.7, 0.6, 0.8, ""),
         ("isoflop", "kaplan", "N = matrices", 0.65, np.nan, np.nan, ""),
         ("frontier", "total", "N = all", np.nan, np.nan, np.nan, "add params_total"),
         ("isoflop", "total", "N = all", np.nan, np.nan, np.nan, "add params_total")],
        columns=["law", "convention", "definition", "a", "a_low", "a_high", "note"],
    )  # fmt: skip
    published = pd.DataFrame([("kaplan", "Kaplan", 0.88, np.nan, np.nan), ("kaplan", "Porian", 0.835, 0.824, 0.846)],
                             columns=["convention", "source", "a", "a_low", "a_high"])  # fmt: skip
    one, other = conventions_table(Conventions(rows, published))
    assert list(one.values()) == [
        "N = matrices", "0.700 [0.600, 0.800]", "0.650", "Kaplan: 0.88; Porian: 0.835 [0.824, 0.846]",
    ]  # fmt: skip
    assert list(other.values()) == ["N = all", "add params_total", "add params_total", ""]


def test_an_interval_that_is_not_calibrated_is_marked(full: Any) -> None:
    tables = law_tables(full.laws, {"parametric undecayed.G": False, "frontier raw.a": False, "parametric.A": False})
    marked = {(table.title, row.name) for table in tables for row in table.rows if row.calibrated is False}
    assert marked == {("Parametric fit", "G"), ("Frontier at the fixed batch", "N exponent")}
