"""Contours of equal loss of the parametric fit, with the efficient frontier and isoFLOP slices (Hoffmann et al. 2022,
Fig. 4)."""

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

NAME = "isoloss"
LAW = "parametric"
STYLES: dict[str, dict[str, Any]] = {
    "frontier": {"color": style.BLUE, "linestyle": "-", "linewidth": 2.2},
    "budget": {"color": style.GREY, "linestyle": ":", "linewidth": 1.0},
    "runs": {"marker": "o", "size": 16},
    "minimum": {"marker": "D", "size": 24, "color": style.INK},
    "gopher": {"color": "#ffd43b", "offset": (-9, 8, "right")},
}


def published() -> FigureData:
    """Approach 3 with unrounded constants; contours from 2 to 5 nats and slices at the nine budgets."""
    law = pub.APPROACH_3
    parts = [_contour(law, loss, (4e7, 1.2e11), (1e18, 3e25)) for loss in _LOSSES]
    flops = np.geomspace(1e18, 3e25, 76)
    gopher, size = pub.GOPHER_FLOPS, float(law.params_opt(pub.GOPHER_FLOPS))
    parts.append(
        rows(
            "contours",
            "frontier",
            "line",
            flops,
            law.params_opt(flops),
            label=r"efficient frontier, N $\propto\ C^{0.46}$",
        )
    )
    for budget in (*pub.ISOFLOP_BUDGETS, gopher):
        parts.append(rows("contours", f"budget {budget:.3g}", "line", [budget, budget], [4e7, 1.2e11]))
        sizes = np.geomspace(4e7, 1e11, 121)
        loss = law.loss(sizes, budget / (6 * sizes))
        shown = loss <= 5.0
        parts.append(rows("slices", f"{budget:.3g} FLOP", "line", sizes[shown], loss[shown], value=budget))
        best = float(law.params_opt(budget))
        parts.append(rows("slices", "minimum", "point", best, law.loss(best, budget / (6 * best))))
    parts.append(rows("contours", "gopher", "star", gopher, size, label="40B"))
    parts.append(rows("slices", "gopher", "star", size, law.loss(size, gopher / (6 * size)), label="40B"))
    loss_label, sizes_ticks = "Loss (nats per token)", [1e8, 1e9, 1e10, 1e11]
    panels = {
        "contours": Panel("Contours of equal loss", "FLOPs", "Parameters", xlim=(1e18, 3e25), ylim=(4e7, 1.2e11),
                          xticks=[10.0**k for k in range(18, 26)], yticks=sizes_ticks, yformat="counts",
                          value=loss_label, legend="upper left"),
        "slices": Panel("Slices of equal compute", "Parameters", loss_label, xlim=(4e7, 1.2e11), ylim=(1.9, 5),
                        xticks=sizes_ticks, xformat="counts", yticks=[2, 3, 4, 5], yformat="g", value="FLOPs"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Parametric fit: contours of equal loss and the efficient frontier",
        "$L=E+A/N^α+B/D^β$ with D = C/6N. Dotted: the nine isoFLOP budgets and Gopher's, which are the slices at the "
        "right. Diamonds and star: the efficient frontier on each slice. The unrounded constants are drawn; the "
        "rounded ones give 32B.",
        text.published_footer(pub.HOFFMANN, "approach 3 unrounded: A 406.4, B 410.7, E 1.693, α 0.339, β 0.285"),
        panels,
        join(parts),
    )


_LOSSES = (2.0, 2.1, 2.2, 2.35, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0)


def measured(laws: Laws) -> FigureData | None:
    """Contours of the sweep's own fit over the range of its points, and the fit against what was measured."""
    fit = laws.parametric
    if fit is None or fit.points.empty:
        return None
    constants = {name: float(fit.estimates[name].value) for name in ("A", "B", "E", "alpha", "beta")}
    law = pub.Parametric(**constants, source="this sweep")
    points = fit.points
    flops = 6 * points["params"] * points["tokens"]
    n_range = (float(points["params"].min()) / 1.5, float(points["params"].max()) * 1.5)
    c_range = (float(flops.min()) / 1.5, float(flops.max()) * 1.5)
    losses = np.quantile(points["loss"], np.linspace(0.02, 0.98, 8)).round(3)
    parts = [_contour(law, loss, n_range, c_range) for loss in sorted(set(losses))]
    label = "efficient frontier, " + text.proportional("N", "C", fit.estimates["a"])
    line = fit.line[fit.line["params"].between(*n_range)]
    low, high = line["low"].clip(*n_range), line["high"].clip(*n_range)
    parts += [
        rows("contours", "runs", "point", flops, points["params"], value=points["loss"]),
        rows("contours", "frontier", "line", line["flops"], line["params"], label=label),
        rows("contours", "frontier", "band", line["flops"], line["params"], low=low, high=high),
    ]
    for params in np.unique(points["params"].to_numpy(float)):
        part = points[points["params"] == params]
        parts.append(rows("fit", f"N = {params:.0f}", "point", part["tokens"], part["loss"], value=params))
        tokens = np.geomspace(part["tokens"].min(), part["tokens"].max(), 41)
        parts.append(rows("fit", f"N = {params:.0f}", "line", tokens, law.loss(params, tokens), value=params))
    panels = {
        "contours": Panel("Contours of equal loss", "FLOPs (6ND)", text.size_label(laws),
                          value="Test loss (nats per token)", legend="upper left"),
        "fit": Panel("The fit against the runs", "Tokens D", "Test loss (nats per token)", yscale="linear",
                     value=text.size_label(laws)),
    }  # fmt: skip
    values = ", ".join(
        f"{symbol} {text.interval(fit.estimates[name])}" for name, symbol in (("E", "E"), ("alpha", "α"), ("beta", "β"))
    )
    return FigureData(
        NAME,
        "Parametric fit: contours of equal loss and the efficient frontier",
        f"$L=E+A/N^α+B/D^β$ fitted to {len(points)} points of {fit.kind} runs, "
        f"{text.misfit(points['loss'], points['fitted'])}: {values}.",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Contours at the left, slices or the fit at the right."""
    budgets = {s: STYLES["budget"] for s in data.frame["series"].unique() if str(s).startswith("budget")}
    thin = {s: {"linewidth": 1.2, "size": 12} for s in data.frame["series"].unique() if s not in STYLES}
    return marks.draw_panels(data, {**thin, **STYLES, **budgets}, size=(11.4, 4.8))


def _contour(
    law: pub.Parametric, loss: float, n_range: tuple[float, float], c_range: tuple[float, float]
) -> pd.DataFrame:
    """The line of equal `loss` in (FLOP, N) inside the given ranges."""
    if loss <= law.E:
        return rows("contours", "", "line", [], [])
    sizes, tokens = law.contour(loss, 1 / (1 + np.exp(np.linspace(-9, 9, 300))))
    flops = 6 * sizes * tokens
    shown = (flops >= c_range[0]) & (flops <= c_range[1]) & (sizes >= n_range[0]) & (sizes <= n_range[1])
    return rows("contours", f"L = {loss:.4g}", "line", flops[shown], sizes[shown], value=loss)
