"""Loss against model size at equal compute, with parabolas and their minima (Hoffmann et al. 2022, Fig. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import published as pub
from analysis.figures import marks, style, text
from analysis.figures.style import FigureData, Panel, join, rows

if TYPE_CHECKING:
    from analysis.chain.results import Laws

NAME = "isoflop"
LAW = "isoflop"
STYLES: dict[str, dict[str, Any]] = {
    "minimum": {"color": style.INK, "marker": "D", "size": 26},
    "fit": {"color": style.INK, "linestyle": "-"},
    "printed": {"color": style.ORANGE, "linestyle": "--"},
    "63B": {"color": style.GREEN, "offset": (-9, 6, "right")},
    "1.4T": {"color": style.GREEN, "offset": (-9, 6, "right")},
}


def published() -> FigureData:
    """The nine budgets on the unrounded parametric law of approach 3; lines and stars as the paper prints them."""
    parts: list[pd.DataFrame] = []
    optima = []
    for budget in pub.ISOFLOP_BUDGETS:
        sizes = float(pub.APPROACH_3.params_opt(budget)) * 2.0 ** np.arange(-3, 3.1, 0.75)
        sizes = sizes[(sizes > 5e7) & (sizes < 2.5e10)]
        loss = pub.APPROACH_3.loss(sizes, budget / (6 * sizes))
        sizes, loss = sizes[loss < 3.28], loss[loss < 3.28]
        curve, size, least = _parabola(sizes, loss)
        name = f"{budget:.0e} FLOP"
        parts.append(rows("loss", name, "point", sizes, loss, value=budget))
        parts.append(rows("loss", name, "line", curve[0], curve[1], value=budget))
        optima.append((budget, size, budget / (6 * size), least))
    flops, size, tokens, least = np.array(optima).T
    parts.append(rows("loss", "minimum", "point", size, least))
    wide = np.geomspace(1e17, 1e25, 81)
    for panel, y, unit, star, label in (
        ("size", size, pub.APPROACH_2(wide), pub.APPROACH_2_AT_GOPHER[0], "63B"),
        ("tokens", tokens, wide / (6 * pub.APPROACH_2(wide)), pub.APPROACH_2_AT_GOPHER[1], "1.4T"),
    ):
        slope, intercept = np.polyfit(np.log(flops), np.log(y), 1)
        symbol, printed = ("N", "$C^{0.49}$") if panel == "size" else ("D", "$C^{0.51}$")
        parts += [
            rows(panel, "minimum", "point", flops, y, value=flops),
            rows(panel, "fit", "line", wide, np.exp(intercept + slope * np.log(wide)),
                 label=rf"minima shown, {symbol} $\propto\ C^{{{slope:.2f}}}$"),
            rows(panel, "printed", "line", wide, unit, label=f"approach 2 as printed, {printed}"),
            rows(panel, label, "star", pub.GOPHER_FLOPS, star, label=label),
        ]  # fmt: skip
    flops_axis: dict[str, Any] = {"xlim": (1e17, 1e25), "xticks": [10.0**k for k in range(17, 26, 2)]}
    panels = {
        "loss": Panel("Loss at equal compute", "Parameters", "Loss (nats per token)", yscale="linear", xlim=(4e7, 3e10),
                      xticks=[1e8, 3e8, 1e9, 3e9, 1e10, 3e10], xformat="counts", ylim=(2.1, 3.3), yformat=".1f",
                      yticks=[2.2, 2.4, 2.6, 2.8, 3.0, 3.2], value="FLOPs"),
        "size": Panel("Optimal parameters", "FLOPs", "Parameters", **flops_axis, legend="upper left",
                      ylim=(2e7, 2e12), yticks=[10.0**k for k in range(8, 13)], yformat="counts"),
        "tokens": Panel("Optimal tokens", "FLOPs", "Tokens", **flops_axis, legend="upper left",
                        ylim=(2e8, 3e13), yticks=[10.0**k for k in range(9, 14)], yformat="counts"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Loss at equal compute and its minima",
        "Points: computed from the paper's parametric law (approach 3, unrounded) at its nine budgets, not measured. "
        "Curves: parabola in log N through the five points around the lowest. Stars: what the paper reads off its "
        "own minima at Gopher's budget.",
        text.published_footer(
            pub.HOFFMANN, "approach 3 unrounded; budgets of Fig. 3; approach 2 from Table A3; C = 6ND"
        ),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """The sweep's losses at equal compute, parabolas over the points they fit, and the line through the minima."""
    isoflop = laws.isoflop
    if isoflop is None or isoflop.optima.empty:
        return None
    parts: list[pd.DataFrame] = []
    for optimum in isoflop.optima.to_dict("records"):
        budget = float(optimum["budget"])
        name = f"{budget:.3g} FLOP"
        points = isoflop.points[np.isclose(isoflop.points["budget"], budget)]
        parts.append(rows("loss", name, "point", points["params"], points["loss"], value=budget))
        if np.isfinite(optimum["c2"]):
            log_n = np.linspace(np.log(optimum["fit_low"]), np.log(optimum["fit_high"]), 41)
            curve = optimum["c0"] + optimum["c1"] * log_n + optimum["c2"] * log_n**2
            parts.append(rows("loss", name, "line", np.exp(log_n), curve, value=budget))
    used = isoflop.optima[isoflop.optima["used"]]
    budgets, low, high = used["budget"], used["params_low"], used["params_high"]
    parts.append(rows("loss", "minimum", "point", used["params"], used["loss"]))
    parts.append(rows("size", "minimum", "point", budgets, used["params"], low=low, high=high, value=budgets))
    parts.append(rows("tokens", "minimum", "point", budgets, used["tokens"], value=budgets))
    if isoflop.fit:
        line = isoflop.line
        for panel, column, key in (("size", "params", "a"), ("tokens", "tokens", "b")):
            label = text.proportional("N" if key == "a" else "D", "C", isoflop.fit[key])
            parts.append(rows(panel, "fit", "line", line["flops"], line[column], label=label))
        parts.append(rows("size", "fit", "band", line["flops"], line["params"], low=line["low"], high=line["high"]))
    no_fit = "" if isoflop.fit else "No line: fewer than two budgets have their minimum inside the sweep's sizes."
    panels = {
        "loss": Panel(
            "Loss at equal compute", text.size_label(laws), "Test loss (nats per token)", yscale="linear", value="FLOPs"
        ),
        "size": Panel(
            "Optimal size", text.compute_label(laws), text.size_label(laws), legend="upper left", empty=no_fit
        ),
        "tokens": Panel("Optimal tokens", text.compute_label(laws), "Tokens D", legend="upper left", empty=no_fit),
    }
    return FigureData(
        NAME,
        "Loss at equal compute and its minima",
        f"Points: {isoflop.kind} runs read at equal C. Curves: parabola in log N through the points around the "
        "lowest. Diamonds: minima inside the range of sizes; where the best size is the smallest or largest there is "
        "no minimum.",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Three panels: slices, sizes, tokens."""
    return marks.draw_panels(data, STYLES, size=(13.0, 4.6), width_ratios=[1.5, 1, 1])


def _parabola(sizes: np.ndarray, loss: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], float, float]:
    """Curve, vertex and its loss of the quadratic in ln N through the five points centred on the lowest."""
    centre = int(np.clip(loss.argmin(), 2, len(loss) - 3))
    log_n = np.log(sizes[centre - 2 : centre + 3])
    c2, c1, c0 = np.polyfit(log_n, loss[centre - 2 : centre + 3], 2)
    x = np.linspace(log_n[0], log_n[-1], 41)
    vertex = -c1 / (2 * c2)
    return (np.exp(x), c0 + c1 * x + c2 * x**2), float(np.exp(vertex)), float(c0 - c1**2 / (4 * c2))
