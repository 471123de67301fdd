"""Critical batch size against loss (Kaplan et al. 2020, Fig. 10) and the trade-off it comes from (Fig. 18).

At a fixed loss a batch B takes S = S_min + E_min/B steps and E = E_min + S_min·B tokens: a hyperbola in (S, E) whose
corner is at B_crit = E_min/S_min.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import published as pub
from analysis.figures import marks, style, text
from analysis.figures.style import FigureData, Panel, join, rows

if TYPE_CHECKING:
    from analysis.chain.results import Laws

NAME = "critical_batch"
LAW = "critical-batch"
TRADE_PANELS = 2  # models whose trade-off is drawn; more would not fit a page's width
TRADE_LOSSES = 6  # target losses in each, spread over those used
NEAR = 30.0  # times the least and the greatest batch: a bound on B_crit beyond that is not drawn
LAW_STYLE = {"color": style.INK, "linestyle": "--"}
MODELS = (
    {"color": style.BLUE, "marker": "o"},
    {"color": style.ORANGE, "marker": "s"},
    {"color": style.GREEN, "marker": "^"},
    {"color": style.PURPLE, "marker": "D"},
    {"color": style.RED, "marker": "v"},
)
STEPS, TOKENS = "Steps S", "Tokens processed E"


def published() -> FigureData:
    """The law of Fig. 10, and Eq. 5.1 with S_min of Eq. 5.6 and B_crit of Eq. 5.3 at a few losses."""
    loss = np.geomspace(10.5, 2.9, 81)
    parts = [rows("law", "law", "line", loss, pub.B_CRIT_LEGEND(loss), label=r"$B_{crit} = 2.1\times10^8\ L^{-4.8}$")]
    panels = {
        "law": Panel("Critical batch size", "Loss (nats per token), falling", "Critical batch size (tokens)",
                     xlim=(11, 2.8), xticks=[10, 6, 4, 3], xformat="g", ylim=(1e3, 3e6), legend="upper left"),
    }  # fmt: skip
    for params, losses in ((3e6, (5.5, 5.0, 4.6, 4.3, 4.1)), (85e6, (5.5, 4.8, 4.2, 3.7, 3.4))):
        key = f"N = {params / 1e6:.0f}M"
        for target in losses:
            steps_min = float(pub.SURFACE.steps_min(params, target))
            parts += _hyperbola(key, target, steps_min, steps_min * float(pub.B_CRIT(target)))
        panels[key] = Panel(f"Trade-off, {key}", STEPS, TOKENS, legend=None)
    return FigureData(
        NAME,
        "Critical batch size and the trade-off between steps and tokens",
        "Left: $B_{crit}$ doubles for each 13% fall of the loss. Right: steps and tokens to reach a loss L; the "
        "batch grows from the lower right to the upper left; diamonds at $B_{crit}$, where both are twice their "
        "minimum.",
        text.published_footer(pub.KAPLAN, "legend of Fig. 10; right: Eqs. 5.1, 5.3, 5.6 (computed)"),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """B_crit of every model and target loss with the fit, and the measured cells of the trade-off."""
    critical = laws.critical
    if critical is None or critical.points.empty:
        return None
    points = critical.points
    parts: list[pd.DataFrame] = []
    if critical.law:
        slope = critical.law["slope"]
        label = text.proportional("$B_{crit}$", "L", slope, 1)
        parts.append(rows("law", "law", "line", critical.line["loss"], critical.line["B_crit"], label=label))
        parts.append(_band(critical.line))
    order = list(points.sort_values("params")["group"].unique())
    batches = critical.cells["batch_tokens"].astype(float)
    near = points["used"] | points["B_crit"].between(batches.min() / NEAR, batches.max() * NEAR)
    for group in order:
        part = points[(points["group"] == group) & near]
        used, rest = part[part["used"]], part[~part["used"]]
        many = len(order) > len(MODELS)  # then colours tell them apart, not names
        value = float(points.loc[points["group"] == group, "params"].iloc[0])
        shade = value if many else np.nan
        label = "" if many else f"{group}, N = {text.whole(value)}"
        if len(used):
            parts.append(rows("law", group, "point", used["target_loss"], used["B_crit"], low=used["B_crit_low"],
                              high=used["B_crit_high"], label=label, value=shade))  # fmt: skip
        parts.append(rows("law", group, "bound", rest["target_loss"], rest["B_crit"], value=shade))
    panels = {"law": _law_panel(points[near], len(order) > len(MODELS))}
    ranked = points[points["used"]].groupby("group").size().sort_values(ascending=False)
    for group in sorted(ranked.index[:TRADE_PANELS], key=order.index):
        size = text.whole(float(points.loc[points["group"] == group, "params"].iloc[0]))
        panels[group] = Panel(f"Trade-off, {group} (N = {size})", STEPS, TOKENS, legend=None)
        parts += _measured_trade_off(laws, group)
    far = int((~near & (points["B_crit"] > 0)).sum())
    beyond = f" {far} hollow points farther than a factor of {NEAR:g} from the batches are left out." if far else ""
    said = {"yes": "rises", "no": "falls"}.get(critical.rises, "cannot be said to rise or fall")
    return FigureData(
        NAME,
        "Critical batch size and the trade-off between steps and tokens",
        f"$B_{{crit}}$ {said} as the loss falls. Filled: used in the fit; hollow: not used (too few batches, or "
        "$B_{crit}$ outside them; right: not reached, the farthest point run). Diamonds: $B_{crit}$, where steps "
        f"and tokens are twice their minimum.{beyond}",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """The law at the left, the trade-offs beside it."""
    groups = [s for s in data.rows("law")["series"].unique() if s != "law"]
    looks = {g: MODELS[i % len(MODELS)] for i, g in enumerate(groups)}
    trade = {"corner": {"marker": "D", "size": 26, "color": style.INK}, "cells": {"marker": "o", "size": 20}}
    panels = len(data.panels)
    return marks.draw_panels(data, {"law": LAW_STYLE, **looks, **trade}, size=(1.6 + 3.6 * panels, 4.6))


def _hyperbola(
    panel: str, target: float, steps_min: float, tokens_min: float, low: float = 1 / 30, high: float = 30.0
) -> list[pd.DataFrame]:
    """S and E over batches from `low` to `high` times B_crit, the corner at B_crit, and the loss at the end."""
    ratio = np.geomspace(low, high, 61)
    steps, tokens = steps_min * (1 + 1 / ratio), tokens_min * (1 + ratio)
    name = f"L = {target:.3g}"
    return [
        rows(panel, name, "line", steps, tokens, value=target),
        rows(panel, "corner", "point", 2 * steps_min, 2 * tokens_min),
        rows(panel, name, "note", steps[0], tokens[0], label=name),
    ]


def _measured_trade_off(laws: Laws, group: str) -> list[pd.DataFrame]:
    assert laws.critical is not None
    points, cells = laws.critical.points, laws.critical.cells
    parts = []
    used = points[(points["group"] == group) & points["used"]].sort_values("target_loss")
    chosen = np.unique(np.linspace(0, len(used) - 1, TRADE_LOSSES).round().astype(int))
    for point in used.iloc[chosen].to_dict("records"):
        mine = cells[(cells["group"] == group) & np.isclose(cells["target_loss"], point["target_loss"])]
        # As far as the batches were run, a little beyond for the eye.
        ratio = mine["batch_tokens"] / point["B_crit"]
        low, high = float(ratio.min()) / 1.4, float(ratio.max()) * 1.4
        parts += _hyperbola(group, point["target_loss"], point["S_min"], point["E_min"], low, high)
        for censored, role in ((False, "point"), (True, "bound")):
            part = mine[mine["censored"].astype(bool) == censored]
            parts.append(rows(group, "cells", role, part["steps"], part["tokens"], value=point["target_loss"]))
    return parts


def _law_panel(points: pd.DataFrame, many: bool) -> Panel:
    shown = points[points["B_crit"] > 0]
    high, low = float(shown["target_loss"].max()) * 1.03, float(shown["target_loss"].min()) / 1.03
    step = 0.1 if high - low < 1 else 0.25 if high - low < 2.5 else 0.5
    ticks = list(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step)
    ticks = ticks[:: max(1, len(ticks) // 6)]
    return Panel("Critical batch size", "Test loss (nats per token), falling", "Critical batch size (tokens)",
                 xlim=(high, low), xticks=ticks, xformat="g", legend="upper left",
                 value="Parameters N" if many else "")  # fmt: skip


def _band(line: pd.DataFrame) -> pd.DataFrame:
    if line["low"].isna().all():
        return rows("law", "law", "band", [], [])
    return rows("law", "law", "band", line["loss"], line["B_crit"], low=line["low"], high=line["high"])
