"""The numbers that matter of one analysis, in one order, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis import published as pub
from analysis.chain.results import Laws
from analysis.figures.text import interval, number
from sweep.schema import PF_DAY

RISES = {
    "yes": "yes: the interval of its slope against the loss lies below zero",
    "no": "no: the interval of its slope against the loss lies above zero",
    "undecided": "undecided: the interval of its slope against the loss holds zero",
    "unknown": "not said without intervals",
}
MISSING = "not measured"


@dataclass(frozen=True)
class Line:
    """One number: what it is, its value with the interval, what the papers found."""

    name: str
    value: str
    published: str = ""


def headline(laws: Laws) -> list[Line]:
    """Exponents of N(C_min) and L(C_min), B_crit at a stated loss, whether it rises, alpha_B, and what it cost.

    A number that the sweep cannot support says so, and `laws.warnings` says why.
    """
    adjusted = laws.frontier.fits.get("adjusted", {}) if laws.frontier else {}
    critical = laws.critical
    law = critical.law if critical and critical.law else {}
    at = f" at loss {critical.at_loss:.3g}" if critical and critical.at_loss is not None else ""
    return [
        Line("exponent of N(C_min)", _exponent(adjusted.get("N")), f"Kaplan {pub.N_OPT.exponent}"),
        Line(f"B_crit{at}", f"{interval(law['B_crit'])} tokens" if "B_crit" in law else MISSING),
        Line("B_crit rises as the loss falls", RISES[critical.rises] if critical and law else MISSING, "Kaplan: yes"),
        Line("alpha_B", interval(law["alpha_B"]) if "alpha_B" in law else MISSING, f"Kaplan {pub.ALPHA_B:.2f}"),
        Line("exponent of L(C_min)", _exponent(adjusted.get("L")), f"Kaplan {pub.L_OF_C_MIN.exponent:.3f}"),
        Line(
            "total compute",
            f"{number(laws.meta['flops_total'])} FLOP ({number(laws.meta['flops_total'] / PF_DAY)} PF-days)",
        ),
        Line("training time", training_time(laws.meta)),
    ]


def training_time(meta: Mapping[str, Any]) -> str:
    """Wall time of all runs, where the table has it."""
    return "not recorded" if meta["wall_s_total"] is None else f"{duration(meta['wall_s_total'])} summed over runs"


def duration(seconds: float) -> str:
    """`7 min 12 s`, `3 h 05 min`, `42 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _exponent(law: Any) -> str:
    return MISSING if law is None else interval(law.exponent)
