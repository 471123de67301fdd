"""Compute-efficient model size and serial steps against compute (Kaplan et al. 2020, Fig. 14).

Left: N of the lowest loss at each compute, adjusted to a batch far below the critical one (C_min) and at the fixed
batch. Right: the steps of those runs, S_min and S, on a linear axis.
"""

from __future__ import annotations

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

NAME = "optimal_size_and_steps"
LAW = "frontier"
STYLES: dict[str, dict[str, Any]] = {
    "adjusted": {"color": style.BLUE, "linestyle": "-", "marker": "o"},
    "raw": {"color": style.ORANGE, "linestyle": "--", "marker": "s"},
    "meeting": {"color": style.INK, "marker": "D", "size": 30, "offset": (-8, 9, "right")},
}
STEPS = {"adjusted": "$S_{min}$", "raw": "S"}


def published() -> FigureData:
    """The laws of Table 6 and of the figure's legend; the fixed-batch steps they imply are C/(6NB)."""
    compute = np.geomspace(1e-8, 1.0, 97)
    meet = (pub.N_OPT.coefficient / pub.N_FIXED_BATCH.coefficient) ** (
        1 / (pub.N_FIXED_BATCH.exponent - pub.N_OPT.exponent)
    )
    size = float(pub.N_OPT(meet))
    c, c_min = "$C$", "$C_{min}$"
    parts = [
        rows(
            "size", "adjusted", "line", compute, pub.N_OPT(compute), label=text.power_formula("N", 1.3e9, c_min, 0.73)
        ),
        rows("size", "raw", "line", compute, pub.N_FIXED_BATCH(compute), label=text.power_formula("N", 1.6e9, c, 0.88)),
        rows("size", "meeting", "point", meet, size),
        rows("size", "meeting", "note", meet, size, label=f"meet at {meet:.2f} PF-days"),
        rows("steps", "adjusted", "line", compute, pub.S_OPT(compute), label=r"$S_{min}$ = 5400 $C_{min}$$^{0.03}$"),
        rows("steps", "raw", "line", compute, pub.fixed_batch_steps(compute), label="S = C/(6NB) of the fixed-batch N"),
    ]
    xlim, ticks = (6e-9, 2.0), [1e-7, 1e-5, 1e-3, 1e-1]
    x = "Compute (PF-days)"
    panels = {
        "size": Panel("Model size", x, "Parameters N (non-embedding)", xlim=xlim, xticks=ticks, ylim=(2e2, 6e9),
                      yticks=[1e3, 1e5, 1e7, 1e9], legend="upper left"),
        "steps": Panel("Serial steps", x, "Steps", yscale="linear", xlim=xlim, xticks=ticks, ylim=(0, 15000),
                       yticks=range(0, 15001, 5000), yformat="g", legend="upper left"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Compute-efficient model size and steps",
        "Solid: adjusted to $C_{min}$. Dashed: at the fixed batch of $2^{19}$ tokens, which wastes compute on small "
        "models.",
        text.published_footer(
            pub.KAPLAN, "Table 6 and legend of Fig. 14; the paper's points are not available as numbers"
        ),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """Optima of the sweep with their fits; edge optima hollow, as bounds."""
    frontier = laws.frontier
    if frontier is None or frontier.optima.empty:
        return None
    parts: list[pd.DataFrame] = []
    for kind in ("adjusted", "raw"):
        optima = frontier.optima[frontier.optima["kind"] == kind]
        if optima.empty:
            continue
        inside = optima["used"]
        good, edge = optima[inside], optima[~inside]
        flops = good["flops"] / PF_DAY
        parts += [
            *_fit(laws, kind),
            rows("size", kind, "point", flops, good["params"], low=good["params_low"], high=good["params_high"]),
            rows("size", kind, "bound", edge["flops"] / PF_DAY, edge["params_run"]),
            rows("steps", kind, "point", flops, good["steps"]),
        ]
    x = "Compute: $C_{min}$ (adjusted), C (fixed batch), PF-days"
    panels = {
        "size": Panel("Model size", x, f"Optimal {text.size_label(laws)}", legend="upper left"),
        "steps": Panel("Serial steps", x, "Steps", yscale="linear", ylim=_from_zero(parts), legend="upper left"),
    }
    batch = f"at the fixed batch of {frontier.batch_tokens:,} tokens" if frontier.batch_tokens else "at a fixed batch"
    return FigureData(
        NAME,
        "Compute-efficient model size and steps",
        f"Solid, circles: adjusted to $C_{{min}}$. Dashed, squares: {batch}. Hollow: the best size is the smallest or "
        f"largest that reached that compute, so the mark is a bound. Bars and bands: {laws.level:.0%} intervals.",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Two panels side by side."""
    return marks.draw_panels(data, STYLES)


def _fit(laws: Laws, kind: str) -> list[pd.DataFrame]:
    """Lines with bands of the fits of N and of steps, where there are any."""
    assert laws.frontier is not None
    parts = []
    fits, lines = laws.frontier.fits.get(kind, {}), laws.frontier.lines
    for panel, quantity, symbol in (("size", "N", "N"), ("steps", "S", STEPS[kind])):
        line = lines[(lines["kind"] == kind) & (lines["quantity"] == quantity)]
        if quantity not in fits or line.empty:
            continue
        x, c = line["flops"] / PF_DAY, r"C_{min}" if kind == "adjusted" else "C"
        label = text.proportional(symbol, c, fits[quantity].exponent)
        parts.append(rows(panel, kind, "line", x, line["value"], label=label))
        if line["low"].notna().any():
            parts.append(rows(panel, kind, "band", x, line["value"], low=line["low"], high=line["high"]))
    return parts


def _from_zero(parts: list[pd.DataFrame]) -> tuple[float, float]:
    tops = [p["y"].max() for p in parts if len(p) and p["panel"].iloc[0] == "steps"]
    return 0.0, 1.25 * max([t for t in tops if t == t], default=1.0)
