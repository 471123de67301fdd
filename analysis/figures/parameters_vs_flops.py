"""Optimal parameters against training FLOP (Hoffmann et al. 2022, Fig. 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import published as pub
from analysis.figures import marks, style, text
from analysis.figures.style import FigureData, Panel, join, rows

if TYPE_CHECKING:
    from analysis.chain.results import Laws

NAME = "parameters_vs_flops"
LAW = "frontier"
LINES: dict[str, dict[str, Any]] = {
    "Approach 1": {"color": style.BLUE, "linestyle": "-", "marker": "o"},
    "Approach 2": {"color": style.GREEN, "linestyle": (0, (5, 1.5)), "marker": "s"},
    "Approach 3": {"color": style.RED, "linestyle": (0, (4, 1.5, 1, 1.5)), "marker": "^"},
    "Kaplan et al (2020)": {"color": style.INK, "linestyle": (0, (1.2, 1.2))},
}
STARS: dict[str, dict[str, Any]] = {
    "Chinchilla (70B)": {"color": "#ffd43b", "offset": (10, -9, "left")},
    "Gopher (280B)": {"color": "#e98bb5", "offset": (9, 4, "left")},
    "GPT-3 (175B)": {"color": "#7fc4e8", "offset": (-9, 0, "right")},
    "MT-NLG (530B)": {"color": "#9bd19b", "offset": (9, 2, "left")},
}
STYLES: dict[str, dict[str, Any]] = {**LINES, **STARS, "runs": {"color": "#9a9a9a", "marker": "o", "size": 12}}
STYLES["large models"] = {"offset": (-12, 2, "right")}
MOST_RUNS = 2000  # marks; those of one size and compute lie on each other
FULL_TICKS = [1e7, 1e8, 1e9, 1e10, 1e11, 1e12]


def published() -> FigureData:
    """Three approaches, Kaplan's line and four large models."""
    flops = np.geomspace(1e17, 3e25, 110)
    parts = [rows("all", name, "line", flops, y, label=label) for name, y, label in _published_lines(flops)]
    for column, name in enumerate(("Approach 1", "Approach 2", "Approach 3"), start=1):
        table = [(row[column], row[0]) for row in pub.OPTIMA if row[column] <= 3e25]
        parts.append(rows("all", name, "point", *zip(*table, strict=True)))
    parts += _stars("all")
    panels = {
        "all": Panel("", "FLOPs", "Parameters", xlim=(1e17, 3e25), xticks=[10.0**k for k in range(17, 26, 2)],
                     ylim=(1e7, 2e12), yticks=FULL_TICKS, yformat="counts", legend="upper left"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Optimal parameters for a training budget",
        "Lines: the predictions of three approaches and of Kaplan et al. Small marks: the paper's printed optima. "
        "Stars: large models; three of them are too large for their budget by every approach of Hoffmann et al.",
        text.published_footer(pub.HOFFMANN, "Tables 3, A3; Eq. 4, unrounded; Kaplan: Table 6, C = 2$C_{min}$"),
        panels,
        join(parts),
    )


def measured(laws: Laws) -> FigureData | None:
    """The sweep's runs and approaches in their own range, and where that lies on the published figure."""
    lines = {name: line for name, line, _ in _measured_lines(laws)}
    if not lines:
        return None
    ends = laws.runs.drop_duplicates(["params", "flops"]).sort_values(["params", "flops"])
    drawn = ends.iloc[np.unique(np.linspace(0, len(ends) - 1, MOST_RUNS).round().astype(int))]
    thinned = f" {len(drawn)} of {len(ends)} run ends drawn." if len(drawn) < len(ends) else ""
    parts = [rows("own", "runs", "point", drawn["flops"], drawn["params"], label="runs (final)")]
    for name, line, label in _measured_lines(laws):
        parts.append(rows("own", name, "line", line["flops"], line["params"], label=label))
        parts.append(rows("own", name, "band", line["flops"], line["params"], low=line["low"], high=line["high"]))
        parts.append(rows("wide", name, "line", line["flops"], line["params"]))
    low = 10.0 ** np.floor(np.log10(min(line["flops"].min() for line in lines.values())))
    flops = np.geomspace(low, 3e25, 160)
    parts += [rows("wide", f"published {n}", "line", flops, y, label=label) for n, y, label in _published_lines(flops)]
    parts += _stars("wide", labelled=False)
    parts.append(
        rows("wide", "large models", "note", pub.GOPHER_FLOPS, 280e9, label="GPT-3, Gopher, MT-NLG, Chinchilla")
    )
    end = max(lines.values(), key=lambda line: line["flops"].max()).iloc[-1]
    parts.append(rows("wide", "this sweep", "note", end["flops"], end["params"], label="this sweep"))
    panels = {
        "own": Panel("This sweep", text.compute_label(laws), f"Parameters {text.size_label(laws)}",
                     legend="upper left"),
        "wide": Panel("On the published figure", "FLOPs", "Parameters", xlim=(low, 3e26), ylim=(1e2, 1e13),
                      yticks=[10.0**k for k in range(3, 13, 3)], yformat="counts", legend="lower right"),
    }  # fmt: skip
    return FigureData(
        NAME,
        "Optimal parameters for a training budget",
        "Approach 1: lower envelope at the fixed batch; 2: minima of isoFLOP parabolas; 3: parametric fit. "
        f"{laws.level:.0%} bands. Thin lines at the right: the published laws, extended; they count parameters and "
        f"tokens in other ways.{thinned}",
        text.measured_footer(laws),
        panels,
        join(parts),
        laws.meta["date"],
    )


def draw(data: FigureData) -> Figure:
    """One panel for the published figure, two for a sweep."""
    thin = {f"published {n}": {**look, "linewidth": 0.9} for n, look in LINES.items()}
    if "wide" in data.panels:
        small = {name: {**look, "size": 60} for name, look in STARS.items()}
        return marks.draw_panels(data, {**STYLES, **thin, **small}, size=(11.2, 5.0))
    return marks.draw_panels(data, STYLES, size=(8.2, 5.6))


def _published_lines(flops: np.ndarray) -> Iterator[tuple[str, np.ndarray, str]]:
    formulas = {
        "Approach 1": (pub.APPROACH_1(flops), "$C^{0.50}$"),
        "Approach 2": (pub.APPROACH_2(flops), "$C^{0.49}$"),
        "Approach 3": (pub.APPROACH_3.params_opt(flops), "$C^{0.46}$"),
        "Kaplan et al (2020)": (pub.KAPLAN_LINE(flops), "$C^{0.73}$"),
    }
    for name, (y, formula) in formulas.items():
        yield name, y, f"{name}, {formula}"


def _measured_lines(laws: Laws) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """(series, frame of flops, params, low, high, legend) of each approach that the sweep supports."""
    if laws.frontier is not None and "N" in laws.frontier.fits.get("raw", {}):
        lines = laws.frontier.lines
        line = lines[(lines["kind"] == "raw") & (lines["quantity"] == "N")].rename(columns={"value": "params"})
        yield "Approach 1", line, _legend("Approach 1", laws.frontier.fits["raw"]["N"].exponent)
    if laws.isoflop is not None and laws.isoflop.fit:
        yield "Approach 2", laws.isoflop.line, _legend("Approach 2", laws.isoflop.fit["a"])
    if laws.parametric is not None:
        yield "Approach 3", laws.parametric.line, _legend("Approach 3", laws.parametric.estimates["a"])


def _legend(name: str, exponent: object) -> str:
    return text.proportional(f"{name}, N", "C", exponent)


def _stars(panel: str, labelled: bool = True) -> list[pd.DataFrame]:
    names = dict(zip((s.name for s in pub.STARS), STARS, strict=True))
    return [
        rows(panel, names[s.name], "star", s.flops, s.params, label=names[s.name] if labelled else "")
        for s in pub.STARS
    ]
