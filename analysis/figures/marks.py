"""Draws the rows of a panel: lines, bands, points with intervals, bounds, stars and notes, each series in its style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.style import FigureData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = Mapping[str, Mapping[str, Any]]


def draw_panels(
    data: FigureData,
    styles: Styles,
    *,
    size: tuple[float, float] = (9.6, 4.6),
    width_ratios: list[float] | None = None,
) -> Figure:
    """The figure of `data`: its panels side by side, every row drawn.

    styles: series -> keywords of its marks (color, marker, linestyle, hatch, ...); a series drawn under several roles
        keeps its colour. Series with a `value` take their colour from it, and the panel gets a colour bar.
    """
    with mpl.rc_context(style.RC):
        figure = style.new_figure(data, size)
        axes = figure.subplots(1, len(data.panels), squeeze=False, gridspec_kw={"width_ratios": width_ratios})[0]
        for ax, (name, panel) in zip(axes, data.panels.items(), strict=True):
            style.set_axes(ax, panel)
            frame = data.rows(name)
            if panel.empty or frame.empty:
                continue
            norm = style.colour_norm(frame["value"]) if frame["value"].notna().any() else None
            for (series, role), part in frame.groupby(["series", "role"], sort=False):
                _draw(ax, str(role), part, dict(styles.get(str(series), {})), norm)
            if norm is not None and panel.value:
                bar = figure.colorbar(
                    ScalarMappable(norm, style.SEQUENTIAL), ax=ax, label=panel.value, pad=0.02, aspect=28
                )
                bar.outline.set_visible(False)
                style.set_log_ticks(bar.ax.yaxis, float(norm.vmin or 1), float(norm.vmax or 1))
            if panel.legend and ax.get_legend_handles_labels()[0]:
                ax.legend(loc=panel.legend)
            style.finish_axes(ax, panel)
        return figure


def _draw(ax: Axes, role: str, part: pd.DataFrame, look: dict[str, Any], norm: Normalize | None) -> None:
    label = part["label"].iloc[0] or None
    coloured = norm is not None and part["value"].notna().all()
    if coloured and norm is not None:
        look["color"] = style.SEQUENTIAL(norm(part["value"].to_numpy(float)))
    draw = {"line": _line, "band": _band, "point": _points, "bound": _points, "star": _stars, "note": _notes}[role]
    if role == "bound":
        look["hollow"] = True
    draw(ax, part, look, label)


# Text stays readable where it crosses a line.
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


def _line(ax: Axes, part: pd.DataFrame, look: dict[str, Any], label: str | None) -> None:
    look = {k: v for k, v in look.items() if k not in ("marker", "hatch", "hollow", "alpha", "size")}
    if isinstance(look.get("color"), np.ndarray):  # of its value, which one line has one of
        look["color"] = look["color"][0]
    ax.plot(part["x"], part["y"], label=label, zorder=3, **look)


def _band(ax: Axes, part: pd.DataFrame, look: dict[str, Any], label: str | None) -> None:
    hatch = look.get("hatch")
    ax.fill_between(
        part["x"],
        part["low"],
        part["high"],
        facecolor=look.get("color", style.PALE),
        edgecolor="white" if hatch else "none",
        hatch=hatch,
        alpha=look.get("alpha", 0.18),
        linewidth=0,
        label=label,
        zorder=2,
    )


def _points(ax: Axes, part: pd.DataFrame, look: dict[str, Any], label: str | None) -> None:
    colour, hollow = look.get("color", style.INK), look.get("hollow", False)
    if part["low"].notna().any():
        reach = np.clip([part["y"] - part["low"], part["high"] - part["y"]], 0, None)
        bars = colour if np.ndim(colour) < 2 else style.GREY
        ax.errorbar(part["x"], part["y"], yerr=np.nan_to_num(reach), fmt="none", ecolor=bars, elinewidth=0.9, zorder=4)
    ax.scatter(
        part["x"],
        part["y"],
        s=look.get("size", 24),
        marker=look.get("marker", "o"),
        facecolors="none" if hollow else colour,
        edgecolors=colour if hollow else "white",
        linewidths=1.0 if hollow else 0.4,
        label=label,
        zorder=5,
    )


def _stars(ax: Axes, part: pd.DataFrame, look: dict[str, Any], label: str | None) -> None:
    colour = look.get("color", style.ORANGE)
    ax.scatter(
        part["x"],
        part["y"],
        s=look.get("size", 150),
        marker=look.get("marker", "*"),
        c=colour,
        edgecolors=style.INK,
        linewidths=0.6,
        zorder=6,
    )
    if label:
        dx, dy, align = look.get("offset", (8, 0, "left"))
        place = (part["x"].iloc[0], part["y"].iloc[0])
        ax.annotate(
            label, place, (dx, dy), textcoords="offset points", ha=align, va="center", path_effects=HALO, zorder=7
        )


def _notes(ax: Axes, part: pd.DataFrame, look: dict[str, Any], label: str | None) -> None:
    dx, dy, align = look.get("offset", (6, 0, "left"))
    for x, y in zip(part["x"], part["y"], strict=True):
        ax.annotate(
            label or "",
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
            size=8,
            color=style.INK,
            path_effects=HALO,
            annotation_clip=False,
            zorder=7,
        )
