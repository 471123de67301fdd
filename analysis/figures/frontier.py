"""Training curves against compute with their lower envelope, raw and adjusted (Kaplan et al. 2020, Figs. 1, 2, 13)."""

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

NAME = "frontier"
LAW = "frontier"
KINDS = {"raw": ("Fixed batch", "Compute C (PF-days)"), "adjusted": ("Adjusted", "Compute $C_{min}$ (PF-days)")}
STYLES: dict[str, dict[str, Any]] = {
    "envelope": {"color": style.INK, "linestyle": "-", "linewidth": 1.4, "marker": "o", "size": 16},
    "law": {"color": style.ORANGE, "linestyle": "--", "linewidth": 2.0},
}
CURVE = {"linewidth": 0.9}
MOST_CURVES = 60  # more would hide each other


def published() -> FigureData:
    """Curves and envelopes of Eq. 5.6, with the laws printed in the legend of Fig. 13."""
    sizes = 10.0 ** np.arange(3, 9.1, 0.5)
    steps = np.geomspace(30, 2.5e5, 90)  # the paper's runs end at 2.5e5 updates
    parts: list[pd.DataFrame] = []
    for params in sizes:
        loss = pub.loss_at_steps(params, steps)
        raw = 6 * params * pub.KAPLAN_BATCH * steps / PF_DAY
        for kind, compute in (("raw", raw), ("adjusted", raw / (1 + pub.KAPLAN_BATCH / pub.B_CRIT(loss)))):
            parts.append(rows(kind, f"N = {params:.2g}", "line", compute, loss, value=params))
    compute = np.geomspace(1e-8, 10, 91)
    for kind, law, label in (
        ("raw", pub.L_OF_C_LEGEND, r"L = (C / $2.0\times10^7$)$^{-0.057}$"),
        ("adjusted", pub.L_OF_C_MIN_LEGEND, r"L = ($C_{min}$ / $2.3\times10^8$)$^{-0.050}$"),
    ):
        parts.append(rows(kind, "envelope", "line", compute, _envelope(kind, compute), label="Eq. 5.6, best size"))
        parts.append(rows(kind, "law", "line", compute, law(compute), label=label))
    panels = {
        kind: Panel(title, x, "Test loss (nats per token)", xlim=(1e-8, 10), xticks=[10.0**k for k in range(-8, 1, 2)],
                    ylim=(2, 8), yticks=[2, 3, 4, 5, 6, 7], yformat="g", value="Parameters N", legend="lower left")
        for kind, (title, x) in KINDS.items()
    }  # fmt: skip
    return FigureData(
        NAME,
        "Training curves and their lower envelope",
        "Thin: $L(N,S_{min})$ of Eq. 5.6 for each size. Black: its best size at each compute. Dashed: the laws the "
        "paper fits to the envelope of its runs, a separate fit. Left at the batch of $2^{19}$ tokens, right "
        "adjusted to a batch far below the critical one.",
        text.published_footer(
            pub.KAPLAN, "Eq. 5.6, Table 3; legend of Fig. 13 (Table 5 prints other scales: 1.6e7, 3.1e8)"
        ),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """Smoothed curve of each size, the optima on the envelope and the fitted L(C), L(C_min)."""
    frontier = laws.frontier
    if frontier is None or frontier.curves.empty:
        return None
    parts: list[pd.DataFrame] = []
    panels: dict[str, Panel] = {}
    groups = frontier.curves.sort_values("params")["group"].unique()
    drawn = groups[np.unique(np.linspace(0, len(groups) - 1, MOST_CURVES).round().astype(int))]
    for kind, (title, x) in KINDS.items():
        curves = frontier.curves[(frontier.curves["kind"] == kind) & frontier.curves["group"].isin(drawn)]
        optima = frontier.optima[frontier.optima["kind"] == kind]
        for group, curve in curves.groupby("group"):
            parts.append(rows(kind, str(group), "line", curve["flops"] / PF_DAY, curve["loss"], value=curve["params"]))
        for role, part in (
            ("point", optima[optima["used"]]),
            ("bound", optima[~optima["used"]]),
        ):
            label = "envelope" if role == "point" else "envelope, best size at an edge"
            parts.append(rows(kind, "envelope", role, part["flops"] / PF_DAY, part["loss"], label=label))
        line = frontier.lines[(frontier.lines["kind"] == kind) & (frontier.lines["quantity"] == "L")]
        fit = frontier.fits.get(kind, {}).get("L")
        if fit is not None and len(line):
            symbol = "C" if kind == "raw" else "C_{min}"
            label = text.proportional("L", symbol, fit.exponent, 3)
            parts.append(rows(kind, "law", "line", line["flops"] / PF_DAY, line["value"], label=label))
        empty = "" if len(curves) else "Not enough runs: at least three sizes at one batch are needed."
        panels[kind] = Panel(title, x, "Test loss (nats per token)", yformat="g", yticks=_ticks(curves["loss"]),
                             value=f"Parameters {text.size_label(laws)}", legend="lower left", empty=empty)  # fmt: skip
    batch = f"of {frontier.batch_tokens:,} tokens" if frontier.batch_tokens else "of all sizes"
    thinned = f" {len(drawn)} of {len(groups)} curves drawn." if len(drawn) < len(groups) else ""
    return FigureData(
        NAME,
        "Training curves and their lower envelope",
        f"Left: smoothed test loss of each size at the batch {batch}, against C. Right: against $C_{{min}}$, "
        "the compute at a batch far below the critical one. Marks: the lower envelope; hollow where its best size is "
        f"the smallest or largest that reached it.{thinned}",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """Two panels; curves thin and coloured by size."""
    curves = {s: CURVE for s in data.frame["series"].unique() if s not in STYLES}
    return marks.draw_panels(data, {**STYLES, **curves}, size=(11.0, 4.8))


def _envelope(kind: str, compute: np.ndarray) -> np.ndarray:
    """Least loss of Eq. 5.6 over all sizes at each compute; adjusted: S_min = C_min/(6·N·B_crit(L))."""
    sizes = np.geomspace(1e2, 1e11, 361)
    if kind == "raw":
        return np.asarray(pub.loss_at_compute(sizes[:, None], compute[None, :]).min(axis=0))
    # C_min is explicit in (N, L): invert its minimum over N, which falls as L rises.
    loss = np.geomspace(1.8, 12, 400)
    flops = 6 * sizes[:, None] * pub.B_CRIT(loss) * pub.SURFACE.steps_min(sizes[:, None], loss[None, :])
    least = np.nanmin(flops, axis=0) / PF_DAY
    return np.exp(np.interp(np.log(compute), np.log(least[::-1]), np.log(loss[::-1])))


def _ticks(loss: pd.Series) -> list[float] | None:
    if loss.empty:
        return None
    low, high = float(loss.min()), float(loss.max())
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / s < 8 or s == 5.0)
    return list(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step)
