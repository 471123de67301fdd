"""What the growth of compute is made of: model size, batch size and serial steps (Kaplan et al. 2020, Fig. 3).

Each band's height is a power of C_min, stacked on logarithmic axes, so that the outer edge is the growth of compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import published as pub
from analysis.figures import marks, style, text
from analysis.figures.style import FigureData, Panel, join, rows
from sweep.schema import PF_DAY

if TYPE_CHECKING:
    from analysis.chain.results import Laws

NAME = "contributions"
LAW = "frontier"
PART = "growth"

BANDS = {"N": "Model size N", "B": "Batch size B", "S": "Serial steps S"}
STYLES: dict[str, dict[str, Any]] = {
    "N": {"color": "#2f6fa8", "alpha": 0.95},
    "B": {"color": "#f0a860", "alpha": 0.95, "hatch": "////"},
    "S": {"color": "#5b8c5a", "alpha": 0.95, "hatch": "....", "offset": (8, 12, "left")},
}


def published() -> FigureData:
    """A billion-fold increase, with the exponents of Table 6."""
    growth = pub.contribution_factors(1e9)
    exponents = {"N": pub.N_OPT.exponent, "B": pub.B_OPT.exponent, "S": pub.S_OPT.exponent}
    frame = _bands(exponents, 1e-9, 1.0, {name: _factor(growth[name]) for name in BANDS})
    return FigureData(
        NAME,
        "What a billion times the compute is spent on",
        "Most of it goes to a larger model; data need grows slowly (batch and steps together), and almost all of "
        "that is batch size, so that the serial time of training hardly grows.",
        text.published_footer(pub.KAPLAN, "Table 6 exponents 0.73, 0.24, 0.03, after Fig. 3"),
        _panels((1e-9, 1.0), (1.0, 1e9)),
        frame,
    )


def measured(laws: Laws) -> FigureData | None:
    """The sweep's own exponents over its measured range of C_min; None without an adjusted frontier."""
    if laws.frontier is None or laws.frontier.shares.empty:
        return None
    shares: dict[str, dict[str, float]] = laws.frontier.shares.set_index("quantity").to_dict("index")  # type: ignore[assignment]
    low, high = (shares["N"][c] / PF_DAY for c in ("flops_low", "flops_high"))
    notes = {name: _factor(shares[name]["factor"]) + _exponent(shares[name]) for name in BANDS}
    exponents = {name: shares[name]["exponent"] for name in BANDS}
    top = max(high / low, *(float((high / low) ** e) for e in np.cumsum(list(exponents.values()))))
    falling = [BANDS[name] for name in BANDS if exponents[name] < 0]
    return FigureData(
        NAME,
        f"What {text.number(high / low, 2)} times the compute is spent on",
        "Growth of model size, batch size and serial steps along the compute-efficient frontier, over the measured "
        f"range of $C_{{min}}$; exponents with {laws.level:.0%} intervals."
        + "".join(
            f" {name} fell: that band is how far the growth of the others exceeds that of compute." for name in falling
        ),
        text.measured_footer(laws),
        _panels((low, high), (1.0, top)),
        _bands(exponents, low, high, notes),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Stacked bands, each with its factor beside the right edge."""
    return marks.draw_panels(data, STYLES, size=(8.2, 5.0))


def _panels(xlim: tuple[float, float], ylim: tuple[float, float]) -> Mapping[str, Panel]:
    x = "Compute $C_{min}$ (PF-days)"
    return {PART: Panel(x=x, y="Multiplicative contribution", xlim=xlim, ylim=ylim, legend=None)}


def _bands(exponents: Mapping[str, float], low: float, high: float, notes: Mapping[str, str]) -> pd.DataFrame:
    compute = np.geomspace(low, high, 91)
    growth, below, parts = compute / low, np.ones_like(compute), []
    for name in BANDS:
        above = below * growth ** exponents[name]
        parts.append(rows(PART, name, "band", compute, above / below, low=below, high=above, label=BANDS[name]))
        below = above
    edge = [(part.iloc[-1], name) for part, name in zip(parts, BANDS, strict=True)]
    parts += [
        rows(PART, name, "note", high, math.sqrt(last["low"] * last["high"]), label=f"{BANDS[name]}\n{notes[name]}")
        for last, name in edge
    ]
    return join(parts)


def _factor(factor: float) -> str:
    return f"× {style.power(factor)}" if factor >= 1e4 else f"× {factor:.3g}"


def _exponent(share: Mapping[str, float]) -> str:
    text_ = f"\n$\\propto C_{{min}}^{{{share['exponent']:.2f}}}$"
    return text_ + (f" [{share['low']:.2f}, {share['high']:.2f}]" if pd.notna(share["low"]) else "")
