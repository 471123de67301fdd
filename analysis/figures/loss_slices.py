"""Loss against model size at fixed compute and at fixed steps (Kaplan et al. 2020, Fig. 11).

The lines are Eq. 5.6 after C and S at the batch are turned into S_min through Eqs. 5.4 and 5.5; the smallest loss of
each fixed-compute line marks the compute-efficient size.
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

NAME = "loss_slices"
LAW = "kaplan-ns"
STYLES: dict[str, dict[str, Any]] = {"minimum": {"marker": "D", "size": 30, "color": style.INK}}
AXES = {"flops": "Fixed compute", "steps": "Fixed steps"}


def published() -> FigureData:
    """Eq. 5.6 with Table 3's constants at B = 2^19 tokens, solved by bisection."""
    parts = []
    sizes = np.geomspace(1e3, 3e9, 261)
    best: list[tuple[float, float]] = []
    for compute in 10.0 ** np.arange(-5, 0.1, 0.5):
        loss = pub.loss_at_compute(sizes, compute)
        shown = loss <= 8.0
        best.append((float(sizes[loss.argmin()]), float(loss.min())))
        parts.append(rows("flops", f"C = {compute:.3g} PF-days", "line", sizes[shown], loss[shown], value=compute))
    parts.append(rows("flops", "minimum", "point", *zip(*best, strict=True)))
    large = np.geomspace(1e6, 1e9, 121)
    for steps in 10.0 ** np.arange(4, 5.05, 0.25):
        loss = pub.loss_at_steps(large, steps)
        parts.append(rows("steps", f"S = {steps:.0f}", "line", large, loss, value=steps))
    x, y = "Parameters N (non-embedding)", "Test loss (nats per token)"
    panels = {
        "flops": Panel(AXES["flops"], x, y, yscale="linear", xlim=(1e3, 3e9), xticks=[1e4, 1e6, 1e8],
                       ylim=(2, 8), yticks=range(2, 9), yformat="g", value="Compute C (PF-days)"),
        "steps": Panel(AXES["steps"], x, y, yscale="linear", xlim=(8e5, 1.25e9), ylim=(2.4, 5.4),
                       xticks=[1e6, 1e7, 1e8, 1e9], value="Steps S",
                       yticks=[2.4, 3.0, 3.6, 4.2, 4.8, 5.4], yformat=".1f"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Loss against model size at fixed compute and at fixed steps",
        "Lines: $L(N,S_{min})$ (Eq. 5.6) at the batch of $2^{19}$ tokens. Diamonds: at fixed compute one size is "
        "best. At fixed steps a larger model always reaches a lower loss.",
        text.published_footer(pub.KAPLAN, "Eqs. 5.3 to 5.6, Table 3; the paper's points are not available as numbers"),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """Interpolated losses of the runs on the slices, and the fitted surface."""
    slices = laws.slices
    if slices is None or slices.empty:
        return None
    parts: list[pd.DataFrame] = []
    panels: dict[str, Panel] = {}
    for axis, title in AXES.items():
        points, lines = slices[slices["axis"] == axis], laws.slice_lines
        unit = PF_DAY if axis == "flops" else 1.0
        for at in np.unique(points["at"]):
            part = points[points["at"] == at]
            parts.append(rows(axis, f"{axis} {at:.4g}", "point", part["params"], part["loss"], value=at / unit))
            if lines is not None and len(lines):
                line = lines[(lines["axis"] == axis) & np.isclose(lines["at"], at)]
                parts.append(rows(axis, f"{axis} {at:.4g}", "line", line["params"], line["loss"], value=at / unit))
        empty = "" if len(points) else "Not measured: too few sizes were run at one batch."
        value = "Compute C (PF-days)" if axis == "flops" else "Steps S"
        panels[axis] = Panel(
            title,
            text.size_label(laws),
            "Test loss (nats per token)",
            yscale="linear",
            value=value,
            legend=None,
            empty=empty,
        )
    batch = (
        f" at the batch of {laws.frontier.batch_tokens:,} tokens"
        if laws.frontier and laws.frontier.batch_tokens
        else ""
    )
    lines_text = "no fitted surface" if laws.surface is None else _surface(laws)
    return FigureData(
        NAME,
        "Loss against model size at fixed compute and at fixed steps",
        f"Points: the runs{batch}, read at equal compute and equal steps. Lines: {lines_text}",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Two panels with colour bars."""
    return marks.draw_panels(data, STYLES, size=(10.4, 4.6))


def _surface(laws: Laws) -> str:
    assert laws.surface is not None
    estimates, points = laws.surface.estimates, laws.surface.points
    misfit = text.misfit(points["loss"], points["fitted"])
    return f"$L(N,S_{{min}})$ (Kaplan's Eq. 5.6) fitted, {misfit}, " + ", ".join(
        f"{symbol}\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{text.interval(estimates[name])}"
        for name, symbol in (("alpha_N", "$α_N$"), ("alpha_S", "$α_S$"))
    )
