"""The report holds every figure and number, explains what is missing, and loads nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.chain.derive import derive
from analysis.figures import NAMES, write_measured
from analysis.figures.text import interval, number
from analysis.report.headline import MISSING, duration, headline
from analysis.report.page import write_report
from analysis.tables.table import NEEDED_CURVE_COLUMNS, NEEDED_RUN_COLUMNS, make_table

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """References, identifiers, text, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: str) -> Outline:
    """Parse a page."""
    parsed = Outline()
    parsed.feed(page)
    assert not parsed.open
    return parsed


@pytest.fixture(scope="module")
def page(full: Any, measured_files: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a sweep that supports every law."""
    out, command = tmp_path_factory.mktemp("report"), "isoloss analyze sweeps/x"
    return write_report(full.laws, full.table, measured_files, out, command=command).read_text()


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = outline(page)
    assert len(parsed.references) > len(NAMES)
    for reference in parsed.references:
        assert reference.startswith(("#", "data:image/svg+xml;base64,")), reference[:80]
        if reference.startswith("#"):
            assert reference[1:] in parsed.ids
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)


def test_every_figure_is_there(page: str) -> None:
    assert [f"figure-{name}" in outline(page).ids for name in NAMES] == [True] * len(NAMES)
    assert page.count("data:image/svg+xml;base64,") == len(NAMES)


def test_every_number_is_there(page: str, full: Any) -> None:
    text = " ".join("".join(outline(page).text).split())
    laws = full.laws
    estimates = [*laws.critical.law.values(), *laws.parametric.estimates.values(), *laws.surface.estimates.values()]
    estimates += laws.isoflop.fit.values()
    for kind, fits in laws.frontier.fits.items():
        for quantity, fit in fits.items():
            if (kind, quantity) != ("raw", "B"):  # the batch is fixed there
                estimates += [fit.exponent, fit.coefficient]
    assert len(estimates) > 30
    for estimate in estimates:
        assert number(estimate.value, 4) in text
        assert interval(estimate).partition(" ")[2] in text
    for line in headline(laws):
        assert line.name in text
        assert line.value in text
    for run_id in full.table.runs["run_id"]:
        assert run_id in text
    for warning in laws.warnings:
        assert warning["message"] in html.unescape(text)
    assert "isoloss analyze sweeps/x" in text


def test_a_poor_sweep_says_what_is_missing(poor: Any, tmp_path: Path) -> None:
    figures = write_measured(poor.laws, tmp_path / "figures", dpi=50)
    text = "".join(outline(write_report(poor.laws, poor.table, figures, tmp_path).read_text()).text)
    for name in set(NAMES) - {"critical_batch"}:
        assert f"{name} is not drawn: " in text
    assert "2 model sizes" in text
    lines = {line.name: line.value for line in headline(poor.laws)}
    assert lines["exponent of N(C_min)"] == MISSING
    assert lines["alpha_B"] == number(poor.laws.critical.law["alpha_B"].value)


def test_a_table_of_the_needed_columns_alone_has_a_report(poor: Any, tmp_path: Path) -> None:
    runs, curves = poor.table.runs[list(NEEDED_RUN_COLUMNS)], poor.table.curves[list(NEEDED_CURVE_COLUMNS)]
    table = make_table(runs, curves, source="mine")
    text = "".join(outline(write_report(derive(table, replicates=0), table, {}, tmp_path).read_text()).text)
    assert "training timenot recorded" in text
    for word in ("nan", "<NA>", "None"):
        assert word not in text


def test_the_sweep_s_own_command_is_given_where_its_manifests_lie(poor: Any, tmp_path: Path) -> None:
    table = dataclasses.replace(poor.table, source=str(tmp_path))
    whole = {
        "argv": ["/bin/isoloss", "sweep", "experiment=my sweep"],
        "git": {"sha": "0123456789abcdef", "dirty": True},
    }
    for run, text in (("a", json.dumps(whole)), ("b", '{"argv": ["isoloss"'), ("c", '{"argv": []}')):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "manifest.json").write_text(text)
    text = html.unescape(write_report(poor.laws, table, {}, tmp_path / "out").read_text())
    assert "isoloss sweep 'experiment=my sweep'  # revision 0123456789ab with local changes" in text
    assert "/bin/isoloss" not in text


def test_names_are_escaped(poor: Any, tmp_path: Path) -> None:
    laws = dataclasses.replace(poor.laws, meta={**poor.laws.meta, "data_name": "<b>&text</b>"})
    page = write_report(laws, poor.table, {}, tmp_path).read_text()
    assert "<b>&text" not in page
    assert "&lt;b&gt;&amp;text" in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (59.6, "1 min 00 s"), (432, "7 min 12 s"), (11100, "3 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7134, "0.713"), (0.5, "0.500"), (999.6, "1,000"), (12345, "12,300"), (2.1e8, "2.10e8"), (3.4e-5, "3.40e-5"),
     (0, "0"), (-0.0432, "-0.0432"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text
