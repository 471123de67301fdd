"""Figures: what their tables hold, that the pictures show it, and that they can be read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import figures as registry
from analysis.chain.derive import derive
from analysis.figures import NAMES, module, style
from analysis.uncertainty.simulate import decayed_sweep
from sweep.schema import PF_DAY

DPI = 50
BATCH = 2**19


@pytest.fixture(scope="module")
def tables(published_files: Path) -> dict[str, pd.DataFrame]:
    """The CSV of every published figure, read back."""
    return {name: pd.read_csv(published_files / f"{name}.csv") for name in NAMES}


def select(table: pd.DataFrame, panel: str, series: str, role: str = "line") -> pd.DataFrame:
    """Rows of one series; there must be some."""
    rows = table[(table["panel"] == panel) & (table["series"] == series) & (table["role"] == role)]
    assert len(rows), (panel, series, role)
    return rows


def at(rows: pd.DataFrame, x: float) -> float:
    """y at `x`, between the rows on log-log axes."""
    return float(np.exp(np.interp(np.log(x), np.log(rows["x"]), np.log(rows["y"]))))


# --- published figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["published", "measured"])
@pytest.mark.parametrize("name", NAMES)
def test_four_files(name: str, variant: str, published_files: Path, measured_files: dict[str, list[Path]]) -> None:
    written = sorted(published_files.glob(f"{name}.*")) if variant == "published" else sorted(measured_files[name])
    csv, pdf, png, svg = written
    assert list(pd.read_csv(csv).columns) == style.COLUMNS
    assert pdf.read_bytes().startswith(b"%PDF")
    assert matplotlib.image.imread(png)[..., :3].std() > 0.05  # something is drawn
    assert svg.read_text().rstrip().endswith("</svg>")


def test_contributions(tables: dict[str, pd.DataFrame]) -> None:
    heights = {}
    for series, exponent in (("N", 0.73), ("B", 0.24), ("S", 0.03)):
        band = select(tables["contributions"], "growth", series, "band")
        growth = band["x"] / band["x"].iloc[0]
        np.testing.assert_allclose(band["high"] / band["low"], growth**exponent)
        assert growth.iloc[-1] == pytest.approx(1e9)
        heights[series] = float(band["high"].iloc[-1] / band["low"].iloc[-1])
    assert heights["N"] == pytest.approx(3.7e6, rel=0.01)
    assert heights["B"] == pytest.approx(145, rel=0.01)
    assert heights["S"] == pytest.approx(1.86, rel=0.01)
    outer = select(tables["contributions"], "growth", "S", "band")
    np.testing.assert_allclose(outer["high"], outer["x"] / outer["x"].iloc[0])  # slope 1


def test_optimal_size_and_steps(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["optimal_size_and_steps"]
    adjusted, fixed = select(table, "size", "adjusted"), select(table, "size", "raw")
    np.testing.assert_allclose(adjusted["y"], 1.3e9 * adjusted["x"] ** 0.73)
    np.testing.assert_allclose(fixed["y"], 1.6e9 * fixed["x"] ** 0.88)
    ratio = np.log(adjusted["y"].to_numpy() / fixed["y"].to_numpy())
    assert np.exp(np.interp(0, -ratio, np.log(adjusted["x"]))) == pytest.approx(0.25, rel=0.01)
    np.testing.assert_allclose(select(table, "steps", "adjusted")["y"], 5.4e3 * adjusted["x"].to_numpy() ** 0.03)
    steps = fixed["x"].to_numpy() * 8.64e19 / (6 * fixed["y"].to_numpy() * BATCH)
    np.testing.assert_allclose(select(table, "steps", "raw")["y"], steps)


def test_loss_slices(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["loss_slices"]
    for panel, low, high in (("flops", 1e-5, 1.0), ("steps", 1e4, 1e5)):
        lines = table[(table["panel"] == panel) & (table["role"] == "line")]
        assert lines["value"].min() == pytest.approx(low)
        assert lines["value"].max() == pytest.approx(high)
        steps = lines["value"] if panel == "steps" else lines["value"] * 8.64e19 / (6 * lines["x"] * BATCH)
        steps_min = steps / (1 + 2.1e8 * lines["y"] ** (-1 / 0.21) / BATCH)
        np.testing.assert_allclose(lines["y"], (6.5e13 / lines["x"]) ** 0.077 + (2.1e3 / steps_min) ** 0.76, rtol=1e-9)
    best = select(table, "flops", "minimum", "point")
    np.testing.assert_allclose(best["x"].iloc[::2], [4.9e4, 3.6e5, 2.5e6, 1.6e7, 8.9e7, 4.9e8], rtol=0.06)
    np.testing.assert_allclose(best["y"].iloc[::2], [5.56, 4.76, 4.11, 3.56, 3.11, 2.73], atol=0.006)


def test_parameters_vs_flops(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["parameters_vs_flops"]
    lines = {
        name: select(table, "all", name) for name in ("Approach 1", "Approach 2", "Approach 3", "Kaplan et al (2020)")
    }
    assert at(lines["Kaplan et al (2020)"], 1e21) == pytest.approx(1.3e9 * (0.5e21 / 8.64e19) ** 0.73, rel=1e-4)
    assert at(lines["Approach 1"], 5.76e23) == pytest.approx(0.0992 * 5.76e23**0.498, rel=1e-4)
    assert at(lines["Approach 2"], 5.76e23) == pytest.approx(0.145 * 5.76e23**0.490, rel=1e-4)
    assert at(lines["Approach 3"], 5.76e23) == pytest.approx(40.4e9, rel=0.002)
    stars = table[table["role"] == "star"].set_index("series")
    assert stars["x"]["Chinchilla (70B)"] == stars["x"]["Gopher (280B)"] == 5.76e23
    for name, size, tokens in (("GPT-3 (175B)", 175e9, 300e9), ("MT-NLG (530B)", 530e9, 270e9)):
        assert stars["x"][name] == pytest.approx(6 * size * tokens)
        assert stars["y"][name] == size


def test_critical_batch(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["critical_batch"]
    law = select(table, "law", "law")
    np.testing.assert_allclose(law["y"], 2.1e8 * law["x"] ** -4.8)
    for panel, params in (("N = 3M", 3e6), ("N = 85M", 85e6)):
        lines = table[(table["panel"] == panel) & (table["role"] == "line")]
        assert lines["series"].nunique() == 5
        steps_min = 2.1e3 * (lines["value"] - (6.5e13 / params) ** 0.077) ** (-1 / 0.76)
        tokens_min = steps_min * 2.1e8 * lines["value"] ** (-1 / 0.21)
        np.testing.assert_allclose((lines["x"] / steps_min - 1) * (lines["y"] / tokens_min - 1), 1, rtol=1e-6)


def test_frontier(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["frontier"]
    for kind, scale, exponent in (("raw", 2.0e7, 0.057), ("adjusted", 2.3e8, 0.050)):
        law, envelope = select(table, kind, "law"), select(table, kind, "envelope")
        np.testing.assert_allclose(law["y"], (scale / law["x"]) ** exponent)
        curves = table[(table["panel"] == kind) & table["series"].str.startswith("N = ")]
        inside = curves["x"].between(envelope["x"].min(), envelope["x"].max())
        below = np.interp(np.log(curves["x"][inside]), np.log(envelope["x"]), envelope["y"])
        gap = curves["y"][inside].to_numpy() / below - 1
        assert gap.min() > -2e-3  # no curve runs under its envelope
        assert gap.min() < 2e-3  # and some touch it


def test_isoflop(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["isoflop"]
    points = table[(table["panel"] == "loss") & (table["role"] == "point") & (table["series"] != "minimum")]
    budgets = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    np.testing.assert_allclose(sorted(points["value"].unique()), budgets)
    tokens = points["value"] / (6 * points["x"])
    size_term = np.exp(6.0073404) / points["x"] ** 0.33917
    data_term = np.exp(6.0179186) / tokens**0.28491
    np.testing.assert_allclose(points["y"], np.exp(0.5267228) + size_term + data_term)
    optima = select(table, "size", "minimum", "point")
    np.testing.assert_allclose(optima["x"], budgets)
    assert np.polyfit(np.log(optima["x"]), np.log(optima["y"]), 1)[0] == pytest.approx(0.28491 / 0.62408, abs=0.005)
    assert select(table, "size", "63B", "star")["y"].item() == 63e9
    assert select(table, "tokens", "1.4T", "star")["y"].item() == 1.4e12
    assert "not measured" in module("isoflop").published().subtitle


def test_isoloss(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["isoloss"]
    contours = table[(table["panel"] == "contours") & table["series"].str.startswith("L = ")]
    tokens = contours["x"] / (6 * contours["y"])
    loss = np.exp(0.5267228) + np.exp(6.0073404) / contours["y"] ** 0.33917 + np.exp(6.0179186) / tokens**0.28491
    np.testing.assert_allclose(loss, contours["value"])
    assert contours["value"].min() == 2
    assert contours["value"].max() == 5
    assert at(select(table, "contours", "frontier"), 5.76e23) == pytest.approx(40.4e9, rel=0.002)


def test_axes_of_the_paper() -> None:
    figure = draw(module("optimal_size_and_steps").published())
    steps = figure.axes[1]
    assert steps.get_ylim() == (0, 15000)
    assert steps.get_yscale() == "linear"
    law = draw(module("critical_batch").published()).axes[0]
    assert law.get_xscale() == "log"
    assert law.get_xlim()[0] > law.get_xlim()[1]  # the loss falls to the right
    assert [t.get_text() for t in law.get_xticklabels()] == ["10", "6", "4", "3"]
    labels = [t.get_text() for t in draw(module("parameters_vs_flops").published()).axes[0].get_yticklabels()]
    assert labels == ["10M", "100M", "1B", "10B", "100B", "1T"]


# --- what every figure keeps --------------------------------------------------------------------------------------


def draw(data: Any) -> Figure:
    """The figure of `data`, laid out."""
    figure: Figure = module(data.name).draw(data)
    figure.draw_without_rendering()
    return figure


@pytest.fixture(scope="module")
def drawn(full: Any) -> dict[tuple[str, str], tuple[Any, Figure]]:
    """(variant, name) -> data and figure, of all published and all measured figures."""
    made = {("published", name): module(name).published() for name in NAMES}
    made |= {("measured", name): module(name).measured(full.laws) for name in NAMES}
    return {key: (data, draw(data)) for key, data in made.items()}


CASES = list(itertools.product(("published", "measured"), NAMES))


@pytest.mark.parametrize("case", CASES)
def test_pictures_show_their_table(case: tuple[str, str], drawn: dict[Any, Any]) -> None:
    """Every line of the table is on its panel, with its numbers, and nothing else is."""
    data, figure = drawn[case]
    for ax, panel in zip(figure.axes, data.panels, strict=False):
        rows = data.rows(panel)
        assert len(rows), panel
        assert not data.panels[panel].empty
        lines = rows[rows["role"] == "line"]
        shown = {tuple(np.round(np.log(line.get_xydata()).sum(axis=0), 6)) for line in ax.lines}
        told = {tuple(np.round(np.log(g[["x", "y"]]).sum(), 6)) for _, g in lines.groupby("series")}
        assert shown == told, panel
        points = rows[rows["role"].isin(["point", "bound", "star"])]
        offsets = [
            len(c.get_offsets()) for c in ax.collections if c.get_paths() and type(c).__name__ == "PathCollection"
        ]
        assert sum(offsets) == len(points), panel


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps(case: tuple[str, str], drawn: dict[Any, Any]) -> None:
    _, figure = drawn[case]
    frame = figure.bbox.expanded(1.002, 1.002)
    for ax in figure.axes:
        # Labels of ticks outside the view are not drawn.
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            ticks = [t.label1 for t in axis.get_major_ticks() + axis.get_minor_ticks() if low <= t.get_loc() <= high]
            boxes = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
            assert_apart(boxes, f"{axis.axis_name} ticks of {ax.get_title(loc='left')}")
        notes = [t.get_window_extent() for t in ax.texts if t.get_text()]
        assert_apart(notes, f"notes of {ax.get_title(loc='left')}")
        title = ax.title.get_window_extent()
        for box in notes:
            assert frame.x0 <= box.x0, case
            assert box.x1 <= frame.x1, case
            assert not (ax.get_title(loc="left") and title.width > 1 and title.overlaps(box))
    heading = [t.get_window_extent() for t in figure.texts]
    assert_apart(heading, "title, subtitle, footer")
    for box in heading:
        assert box.x1 <= frame.x1, "title, subtitle or footer is cut off"


def assert_apart(boxes: list[Any], what: str) -> None:
    """No two boxes share more than a hair."""
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 1 or height < 1, what


@pytest.mark.parametrize("case", CASES)
def test_states_data_convention_and_date(case: tuple[str, str], drawn: dict[Any, Any]) -> None:
    data, figure = drawn[case]
    footer = figure.texts[-1].get_text()
    assert footer.endswith(data.date)
    assert ("et al." in footer) if case[0] == "published" else ("synthetic" in footer and "C = 6ND" in footer)


def test_readable_in_grey() -> None:
    """Colour maps darken steadily; series that share a panel differ in more than colour."""
    light = style.SEQUENTIAL(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(light) > 0).all()
    assert light[-1] < 0.8
    lines = module("parameters_vs_flops").LINES
    assert len({str(look["linestyle"]) for look in lines.values()}) == len(lines)
    models = module("critical_batch").MODELS
    assert len({look["marker"] for look in models}) == len(models)


def test_equal_data_give_equal_files(tmp_path: Path) -> None:
    data = module("contributions").published()
    for name in ("a", "b"):
        style.save(module("contributions").draw(data), data, tmp_path / name, dpi=DPI)
    for suffix in (*style.FORMATS, "csv"):
        one, other = ((tmp_path / name / f"contributions.{suffix}").read_bytes() for name in ("a", "b"))
        assert one == other, suffix


# --- measured figures ---------------------------------------------------------------------------------------------


def test_measured_figures_hold_the_laws(full: Any) -> None:
    laws = full.laws
    assert laws.frontier is not None
    assert laws.critical is not None
    sizes = module("optimal_size_and_steps").measured(laws).frame
    optima = laws.frontier.optima
    inside = optima[(optima["kind"] == "adjusted") & optima["used"]]
    np.testing.assert_allclose(select(sizes, "size", "adjusted", "point")["x"] * PF_DAY, inside["flops"])
    np.testing.assert_allclose(select(sizes, "size", "adjusted", "point")["y"], inside["params"])
    np.testing.assert_allclose(select(sizes, "steps", "adjusted", "point")["y"], inside["steps"])
    growth = module("contributions").measured(laws).frame
    shares = laws.frontier.shares.set_index("quantity")
    for name in ("N", "B", "S"):
        band = select(growth, "growth", name, "band")
        assert float(band["high"].iloc[-1] / band["low"].iloc[-1]) == pytest.approx(shares["factor"][name], rel=1e-6)
    batch = module("critical_batch").measured(laws).frame
    used = laws.critical.points[laws.critical.points["used"]]
    points = batch[(batch["panel"] == "law") & (batch["role"] == "point")]
    np.testing.assert_allclose(sorted(points["y"]), sorted(used["B_crit"]))
    assert points["low"].notna().all()


def test_edge_optima_are_drawn_as_bounds(full: Any) -> None:
    optima = full.laws.frontier.optima
    frame = module("optimal_size_and_steps").measured(full.laws).frame
    for kind in ("raw", "adjusted"):
        edges = ((optima["kind"] == kind) & ~optima["used"]).sum()
        assert edges > 0
        assert len(select(frame, "size", kind, "bound")) == edges


def test_a_poor_sweep_draws_what_it_can(poor: Any, tmp_path: Path) -> None:
    files = registry.write_measured(poor.laws, tmp_path, dpi=DPI)
    assert list(files) == ["critical_batch"]
    assert all(path.stat().st_size > 0 for path in files["critical_batch"])


def test_a_sweep_of_decayed_runs_draws_what_it_can() -> None:
    """As `experiment=isoflop` makes it: no run of a constant rate, so no critical batch and nothing adjusted."""
    shapes = [(2, 8 * k) for k in (1, 2, 3, 4, 6, 8)]
    laws = derive(decayed_sweep(np.geomspace(1e10, 1e12, 4), shapes=shapes), replicates=0)
    made = {name: module(name).measured(laws) for name in NAMES}
    assert {name for name, data in made.items() if data is not None} >= {"parameters_vs_flops", "isoflop", "isoloss"}
    points = select(made["parameters_vs_flops"].frame, "own", "runs", "point")
    assert len(points) == laws.meta["runs"]
    assert points["x"].max() == pytest.approx(1e12, rel=0.05)
    for data in made.values():
        if data is not None:
            draw(data)


# --- words on axes ------------------------------------------------------------------------------------------------


def test_counts_and_powers() -> None:
    assert [style.counts(v) for v in (512, 1e4, 2.5e6, 1e9, 7e10, 1e12)] == ["512", "10K", "2.5M", "1B", "70B", "1T"]
    assert style.power(3000) == "3000"
    assert style.power(1e-9) == "$10^{-9}$"
    assert style.power(2.1e8) == r"$2.1\times10^{8}$"


@pytest.mark.parametrize(("low", "high"), [(3e3, 5e4), (2e-10, 9e-10), (1.9, 2.4), (1.0, 1.05)])
def test_short_log_axes_have_three_ticks(low: float, high: float) -> None:
    figure = Figure()
    ax = figure.add_subplot()
    ax.set(xscale="log", xlim=(low, high))
    style.set_log_ticks(ax.xaxis, low, high)
    ticks = [t for t in ax.get_xticks() if low * 0.99 <= t <= high * 1.01]
    assert 3 <= len(ticks) <= 12


def test_what_would_hide_itself_is_thinned_and_said(full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frontier, ends, batch = (module(name) for name in ("frontier", "parameters_vs_flops", "critical_batch"))
    whole = [m.measured(full.laws) for m in (frontier, ends, batch)]
    assert not any(" drawn." in data.subtitle or "left out" in data.subtitle for data in whole[:2])
    monkeypatch.setattr(frontier, "MOST_CURVES", 3)
    monkeypatch.setattr(ends, "MOST_RUNS", 4)
    monkeypatch.setattr(batch, "MODELS", batch.MODELS[:1])
    monkeypatch.setattr(batch, "NEAR", 1e-9)
    few, fewer, plain = (m.measured(full.laws) for m in (frontier, ends, batch))
    assert "3 of 6 curves drawn." in few.subtitle
    assert set(few.rows("raw")["series"]) - {"envelope", "law"} == {"2x8", "2x24", "3x64"}
    assert "4 of " in fewer.subtitle
    assert (fewer.rows("own")["series"] == "runs").sum() == 4
    points = plain.rows("law").query("series != 'law'")
    assert set(points["label"]) == {""}  # colours tell two models apart
    assert points["value"].nunique() == 2
    assert "left out" in plain.subtitle
    assert set(points["role"]) == {"point"}
    assert len(batch.draw(plain).axes) == len(batch.draw(whole[2]).axes) + 1  # the colour bar
