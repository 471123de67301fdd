"""The one style of all figures: what a figure holds (`FigureData`), how it looks, and how it is written.

A figure is a tidy table and its axes; `draw` shows that table and nothing else, so the CSV beside a picture is the
picture. Series differ by marker and line style as well as by colour, and colour maps are monotone in lightness, so
that every figure can be read in grey.
"""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLUMNS = ["panel", "series", "role", "x", "y", "low", "high", "value", "label"]
FORMATS = ("png", "svg", "pdf")

INK, GREY, PALE = "#1a1a1a", "#767676", "#c9c9c9"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0b4f8a", "#d9730d", "#2e8b57", "#a8201a", "#6a4c93"

# Viridis without its palest tenth, which is lost on white.
SEQUENTIAL: Colormap = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.9, 256)))

RC: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "legend.handlelength": 2.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "isoloss",  # equal data give equal files
}


@dataclass(frozen=True)
class Panel:
    """Axes of one panel. `empty` says why there is nothing to show."""

    title: str = ""
    x: str = ""
    y: str = ""
    xscale: str = "log"
    yscale: str = "log"
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    xticks: Sequence[float] | None = None
    yticks: Sequence[float] | None = None
    xformat: str = ""  # "counts" writes 10M, 1.0B; else a format such as "g" or ".1f"
    yformat: str = ""
    value: str = ""  # label of the colour bar
    legend: str | None = "best"
    empty: str = ""


@dataclass(frozen=True)
class FigureData:
    """All that a figure shows.

    frame: one row a mark, columns `COLUMNS`. `role` is line, band, point, bound (a limit, drawn hollow), star or note
        (text at x, y); `low` and `high` are the interval of y; `value` is what the colour means, nan where the series
        itself is coloured; `label` is the legend's text, empty for none.
    footer: data and convention; the date is added when it is written.
    """

    name: str
    title: str
    subtitle: str
    footer: str
    panels: Mapping[str, Panel]
    frame: pd.DataFrame
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def rows(self, panel: str) -> pd.DataFrame:
        """The rows of one panel."""
        return self.frame[self.frame["panel"] == panel]


def rows(
    panel: str,
    series: str,
    role: str,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    low: npt.ArrayLike = np.nan,
    high: npt.ArrayLike = np.nan,
    value: npt.ArrayLike = np.nan,
    label: str = "",
) -> pd.DataFrame:
    """One series of a figure's frame; `x`, `y` and the rest broadcast."""
    numbers = {"x": x, "y": y, "low": low, "high": high, "value": value}
    # Null of a nullable column becomes nan, which is drawn as nothing.
    arrays = np.broadcast_arrays(*(np.atleast_1d(pd.Series(np.ravel(v)).to_numpy(float)) for v in numbers.values()))
    frame = pd.DataFrame(dict(zip(numbers, arrays, strict=True)))
    return frame.assign(panel=panel, series=series, role=role, label=label)[COLUMNS]


def join(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Series joined to a figure's frame; rows without a place are left out, since nothing is drawn for them."""
    frame = (
        pd.concat([p for p in parts if len(p)], ignore_index=True) if any(map(len, parts)) else rows("", "", "", [], [])
    )
    return frame.dropna(subset=["x", "y"]).reset_index(drop=True)


def new_figure(data: FigureData, size: tuple[float, float] = (9.6, 4.6)) -> Figure:
    """An empty figure in the house style, with title, subtitle and footer; axes fill the room between them."""
    height = size[1]
    # About 13 characters an inch; formulas are written without spaces so that they stay whole.
    wrapped = textwrap.wrap(data.subtitle, int(13.5 * size[0]), break_long_words=False, break_on_hyphens=False)
    lines = len(wrapped)
    top, bottom = (0.34 + 0.19 * lines) / height, 0.24 / height
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.005, bottom, 0.99, 1 - top - bottom), w_pad=0.08, h_pad=0.04, wspace=0.03)
    figure.text(0.012, 1 - 0.08 / height, data.title, va="top", size=12, weight="bold", color=INK)
    figure.text(0.012, 1 - 0.33 / height, "\n".join(wrapped), va="top", size=8.5, color="#444444", linespacing=1.25)
    figure.text(0.012, 0.07 / height, f"{data.footer} · {data.date}", va="bottom", size=7, color=GREY)
    return figure


def set_axes(ax: Axes, panel: Panel) -> None:
    """Scales, limits, ticks and labels of one panel; an empty one says why."""
    ax.set_title(panel.title)
    if panel.empty:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.text(0.5, 0.5, panel.empty, ha="center", va="center", wrap=True, color=GREY, transform=ax.transAxes)
        return
    ax.set(xlabel=panel.x, ylabel=panel.y, xscale=panel.xscale, yscale=panel.yscale)
    for axis, ticks, form, limits, place in (
        (ax.xaxis, panel.xticks, panel.xformat, panel.xlim, ax.set_xlim),
        (ax.yaxis, panel.yticks, panel.yformat, panel.ylim, ax.set_ylim),
    ):
        if limits:
            place(*limits)
        if ticks is not None:
            axis.set_major_locator(FixedLocator(list(ticks)))
            axis.set_minor_locator(NullLocator())
        if form:
            axis.set_major_formatter(FuncFormatter(lambda v, _, f=form: counts(v) if f == "counts" else format(v, f)))
            axis.set_minor_formatter(NullFormatter())


def finish_axes(ax: Axes, panel: Panel) -> None:
    """What depends on the marks: margins, and ticks of logarithmic axes that span little."""
    if panel.xlim is None:
        ax.margins(x=0.04)
    if panel.xscale == "log" and panel.xticks is None:
        set_log_ticks(ax.xaxis, *sorted(ax.get_xlim()))
    if panel.yscale == "log" and panel.yticks is None:
        set_log_ticks(ax.yaxis, *sorted(ax.get_ylim()))


def set_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Round ticks, at least three, on a short logarithmic axis, where whole decades are too few; a long one is left
    alone."""
    if high / low > 60:
        return
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    candidates = [np.ravel(np.outer(decades, steps)) for steps in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))]
    candidates.append(np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)))
    for ticks in candidates:
        ticks = ticks[(ticks >= low * (1 - 1e-6)) & (ticks <= high * (1 + 1e-6))]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(_apart(ticks, 0.16 * np.log(high / low))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)))


def _apart(ticks: npt.NDArray[np.float64], least: float) -> list[float]:
    """The ticks, without those whose label would touch the one before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or np.log(tick / kept[-1]) >= least:
            kept.append(float(tick))
    return kept


def counts(value: float) -> str:
    """10K, 2.5M, 1.0B, 1T: a count as Hoffmann's axes write it."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.2g}{suffix}" if value / unit < 99.5 else f"{value / unit:.0f}{suffix}"
    return f"{value:.0f}"


def power(value: float) -> str:
    """2.1e-08 -> 2.1×10⁻⁸ in mathtext, short numbers plain."""
    if 0.01 <= abs(value) < 1e4 or value == 0:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    exponent = int(np.floor(np.log10(abs(value))))
    mantissa = f"{value / 10.0**exponent:.2g}"
    return rf"$10^{{{exponent}}}$" if mantissa == "1" else rf"${mantissa}\times10^{{{exponent}}}$"


def colour_norm(values: npt.ArrayLike) -> Normalize:
    """Logarithmic colours over the range of `values`."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    return LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2)


def save(figure: Figure, data: FigureData, out: Path, *, dpi: int = 160) -> list[Path]:
    """Write the figure as PNG, SVG and PDF and its table as CSV into `out`; return the four paths."""
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(RC):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not once a format
        # The canvases' own writers: `savefig` would draw everything twice. No time stamps: equal data give equal files.
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(out / f"{data.name}.png")
        FigureCanvasSVG(figure).print_svg(out / f"{data.name}.svg", metadata={"Date": None})
        FigureCanvasPdf(figure).print_pdf(out / f"{data.name}.pdf", metadata={"CreationDate": None})
    table = out / f"{data.name}.csv"
    data.frame.to_csv(table, index=False)
    return [*(out / f"{data.name}.{suffix}" for suffix in FORMATS), table]
