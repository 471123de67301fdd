"""Words on figures and in the report: estimates with their intervals, laws as formulas, footers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures.style import power
from analysis.tables.conventions import DEFINITIONS, SHORT

if TYPE_CHECKING:
    from analysis.chain.results import Laws

COMPUTED = "drawn from published constants"


def published_footer(paper: str, what: str) -> str:
    """Footer of a published variant: where the constants come from and in which convention."""
    return f"{paper}: {COMPUTED}; {what}"


def measured_footer(laws: Laws) -> str:
    """Footer of a measured variant: data, number of runs, convention."""
    meta = laws.meta
    name, hash_ = meta.get("data_name") or "unnamed data", str(meta.get("data_hash") or "")[:8]
    data = f"{name} ({hash_})" if hash_ and hash_ != name[:8] else str(name)
    return f"Measured: {data}, {meta['runs']} runs; {DEFINITIONS[meta['convention']]}; loss in nats per token"


def size_label(laws: Laws) -> str:
    """Axis of N in the sweep's convention: `N (matrices)`."""
    return f"N ({SHORT[laws.meta['convention']][0]})"


def compute_label(laws: Laws) -> str:
    """Axis of C in the sweep's convention: `FLOPs (6ND)`."""
    return f"FLOPs ({SHORT[laws.meta['convention']][1]})"


def number(value: float | None, digits: int = 3) -> str:
    """A measured number for reading, to so many digits: 0.713, 1,240, 2.10e6; an en dash for none."""
    if value is None or value != value:
        return "–"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = abs(rounded)
    if magnitude >= 1e6 or 0 < magnitude < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    if magnitude >= 10 ** (digits - 1) or magnitude == 0:
        return f"{rounded:,.0f}"
    return f"{rounded:#.{digits}g}"


def misfit(loss: Any, fitted: Any) -> str:
    """How far a law is from the losses it was fitted to: `rms misfit 4.6%`."""
    rms = float(np.sqrt(np.mean(np.log(np.asarray(loss, dtype=float) / np.asarray(fitted, dtype=float)) ** 2)))
    return f"rms misfit {rms:.1%}"


def whole(value: float | None) -> str:
    """A count, exact: 196,608."""
    return "–" if value is None or value != value else f"{value:,.0f}"


def interval(estimate: Any, digits: int = 3) -> str:
    """`value [low, high]`; the value alone where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, digits)
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def proportional(left: str, x: str, exponent: Any, digits: int = 2) -> str:
    """`N ∝ C^0.71 [0.66, 0.76]` in mathtext; `exponent` is an estimate."""
    formula = rf"{left} $\propto\ {x}^{{{exponent.value:.{digits}f}}}$"
    if exponent.low is None or exponent.high is None:
        return formula
    return f"{formula} [{exponent.low:.{digits}f}, {exponent.high:.{digits}f}]"


def power_formula(left: str, coefficient: float, x: str, exponent: float, digits: int = 2) -> str:
    """`N = 1.3×10⁹ C^0.73` in mathtext."""
    return rf"{left} = {power(coefficient)} {x}$^{{{exponent:.{digits}f}}}$"
