"""What the report says for and against the fits: residuals by region, hold-out, influence, and exponents set side by
side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.chain.results import Conventions, Laws
from analysis.figures.text import interval, number
from analysis.outcome import Estimate
from analysis.report.tables import Cells
from analysis.uncertainty.diagnostics import Diagnosis
from analysis.uncertainty.influence import SHARE
from analysis.uncertainty.residuals import REGIONS, SYMBOLS

NAMES = {
    "parametric": "parametric fit",
    "isoflop": "isoFLOP minima",
    "adjusted": "frontier, adjusted to C_min",
    "raw": "frontier at the fixed batch",
}
_FEW = 6  # runs shown of each law's influence


@dataclass(frozen=True)
class Checks:
    """Tables of the section on checks. regions: mean residual in thirds of each quantity. held, moved: one row a law.
    runs: by law, what happens without the most influential runs. lines: of the residuals, in words."""

    lines: list[str]
    regions: list[Cells]
    held: list[Cells]
    moved: list[Cells]
    runs: list[tuple[str, list[Cells]]]


def checks(laws: Laws) -> Checks | None:
    """None where nothing was diagnosed."""
    found = laws.diagnostics
    if not found:
        return None
    return Checks(
        lines=_residual_lines(found.get("parametric")),
        regions=_regions(found.get("parametric")),
        held=[_held(NAMES[name], part) for name, part in found.items() if part.hold_out is not None],
        moved=_moved(found),
        runs=[(NAMES[name], _runs(part)) for name, part in found.items() if part.influence is not None],
    )


def exponents_table(exponents: pd.DataFrame) -> list[Cells]:
    """Exponents against C_min as measured on the frontier and as the surface and B_crit(L) imply them. exponents:
    columns quantity, measured, derived, each with _low and _high, and apart."""
    rows = []
    for row in exponents.to_dict("records"):
        cells = {"exponent of": str(row["quantity"])}
        for name in ("measured", "derived"):
            cells[name] = interval(Estimate(row[name], None, _known(row[f"{name}_low"]), _known(row[f"{name}_high"])))
        cells[""] = "intervals apart" if row["apart"] else ""
        rows.append(cells)
    return rows


def conventions_table(conventions: Conventions | None) -> list[Cells]:
    """The exponent a of N_opt(C) of the same runs under each way to count, beside what was printed for it."""
    if conventions is None:
        return []
    rows = []
    for convention, mine in conventions.rows.groupby("convention", sort=False):
        cells = {"counted": str(mine["definition"].iloc[0])}
        for row in mine.to_dict("records"):
            e = Estimate(row["a"], None, _known(row["a_low"]), _known(row["a_high"]))
            cells[f"a, {row['law']}"] = interval(e) if np.isfinite(e.value) else str(row["note"])
        printed = conventions.published[conventions.published["convention"] == convention]
        cells["published a"] = "; ".join(
            f"{row['source']}: {row['a']:g}"
            + ("" if np.isnan(row["a_low"]) else f" [{row['a_low']:g}, {row['a_high']:g}]")
            for row in printed.to_dict("records")
        )
        rows.append(cells)
    return rows


def _residual_lines(part: Diagnosis | None) -> list[str]:
    if part is None or part.residuals is None:
        return []
    r = part.residuals
    noise = "" if r.ratio is None else f", {r.ratio:.1f} times the seed noise"
    head = (
        f"{r.points} points of {r.runs} runs; ln(loss) − ln(fitted) is {r.rms:.2%} rms{noise}, {r.largest:+.1%} at most"
    )
    return [head, *r.findings]


def _regions(part: Diagnosis | None) -> list[Cells]:
    if part is None or part.residuals is None:
        return []
    rows = []
    for name, mine in part.residuals.regions.groupby("quantity", sort=False):
        row = {"mean residual, by thirds of": SYMBOLS[str(name)]}
        row |= dict.fromkeys(REGIONS, "")
        for third in mine.to_dict("records"):
            ends = f"{number(third['from'], 2)} to {number(third['to'], 2)}"
            error = "" if third["se"] != third["se"] else f" ± {third['se']:.2%}"
            row[str(third["region"])] = f"{third['mean']:+.2%}{error} ({ends})"
        rows.append(row)
    return rows


def _held(name: str, part: Diagnosis) -> Cells:
    held = part.hold_out
    assert held is not None
    what = {"loss": "losses", "params": "N_opt"}[held.quantity]
    return {
        "law": name,
        "fitted to": f"{held.fitted} points below {number(held.above, 2)} FLOP",
        "predicts": f"{len(held.points)} {what}, up to {number(held.reach, 2)} times the compute",
        "error rms": f"{held.rms:.1%}",
        "median": f"{held.median:.1%}",
        "largest": f"{held.largest:.1%}",
        "mean": f"{held.mean:+.1%}",
    }


def _moved(found: dict[str, Diagnosis]) -> list[Cells]:
    """The column of few runs together only where some law has many runs."""
    moved = {name: part.influence for name, part in found.items() if part.influence is not None}
    many = any(part.together is not None for part in moved.values())
    rows = []
    for name, part in moved.items():
        row = {"law": NAMES[name], "exponent": number(part.value), "moves it most": "–", "without it": "–"}
        known = part.runs[part.runs["without"].notna()]
        if len(known):
            first = known.to_dict("records")[0]
            size = f" (N = {number(first['params'])})" if "params" in first else ""
            row["moves it most"] = f"{first['run']}{size}"
            row["without it"] = _shifted(first["without"], first["shift_se"])
        if many:
            few = part.together
            row[f"without the {SHARE:.0%} that move it most"] = (
                "–" if few is None else _shifted(few["without"], few["shift_se"])
            )
        rows.append(row)
    return rows


def _runs(part: Diagnosis) -> list[Cells]:
    assert part.influence is not None
    rows = []
    for run in part.influence.runs.head(_FEW).to_dict("records"):
        row = {"left out": str(run["run"])}
        row |= {SYMBOLS.get(c, c): number(run[c]) for c in ("params", "tokens", "loss") if c in run}
        gone = run["without"] != run["without"]
        row["exponent"] = "cannot be fitted" if gone else _shifted(run["without"], run["shift_se"])
        rows.append(row)
    return rows


def _shifted(value: float, errors: float) -> str:
    return f"{number(value)} ({errors:+.1f} standard errors)"


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value
