"""The report: one self-contained page of what was run, the laws with their intervals and warnings, every figure, the
run table, and how to reproduce it.

    from analysis.report.page import write_report
    write_report(laws, table, figures, Path("out"))      # out/report.html
"""

from __future__ import annotations

import base64
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from analysis.chain.results import Laws
from analysis.figures import NAMES, module
from analysis.figures.text import number, whole
from analysis.report.checks import checks, conventions_table, exponents_table
from analysis.report.headline import headline, training_time
from analysis.report.laws import law_tables
from analysis.report.tables import MOST_ROWS, as_float, critical_table, exclusions, optima_table, run_table
from analysis.tables.conventions import DEFINITIONS
from analysis.tables.table import Table
from analysis.uncertainty.labels import verdicts
from sweep.schema import MANIFEST_FILE, PF_DAY, RUNS_DIR

TEMPLATE = "report.html"
REPORT = "report.html"


def write_report(
    laws: Laws, table: Table, figures: Mapping[str, Sequence[Path]], out: Path, *, command: str = ""
) -> Path:
    """Write `out`/report.html and return it. `figures` is what `analysis.figures.write_measured` returned; `command` is
    the line that made this analysis. Every picture is inside the page; nothing is loaded from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        meta=laws.meta,
        level=f"{laws.level:.0%}",
        headline=headline(laws),
        about=_about(laws, table),
        laws=law_tables(laws, verdicts()),
        warnings=_by_law(laws.warnings),
        exponents=exponents_table(laws.kaplan.exponents),
        conventions=conventions_table(laws.conventions),
        checks=checks(laws),
        critical=critical_table(laws),
        optima=optima_table(laws),
        figures=[_figure(name, figures[name]) for name in NAMES if name in figures],
        missing=[(name, _why_missing(name, laws)) for name in NAMES if name not in figures],
        runs=run_table(table),
        more_runs=max(0, len(table.runs) - MOST_ROWS),
        exclusions=exclusions(laws, table),
        command=command,
        origin=_origin(Path(table.source)),
        source=table.source,
        versions=_versions(),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def _by_law(warnings: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Messages by law, each law where it first comes up."""
    found: dict[str, list[str]] = {}
    for warning in warnings:
        found.setdefault(warning["law"], []).append(warning["message"])
    return list(found.items())


def _about(laws: Laws, table: Table) -> list[tuple[str, str]]:
    runs, meta = table.runs, laws.meta
    sizes, batches = runs["params"].astype(float), runs["batch_tokens"].astype(float)
    passes = runs["epochs"].dropna().astype(float)
    noise = "between seeds" if meta["sigma_source"] == "seeds" else "assumed, no cell was repeated"
    text, known = meta["data_name"] or "unnamed", meta["data_hash"] or "not recorded"
    return [
        ("text", f"{text}, data hash {known}, {number(as_float(meta['bytes_per_token']))} bytes per token"),
        ("runs", f"{len(runs)} done" + (f", {len(table.dropped)} not used" if table.dropped else "")),
        (
            "models",
            f"{sizes.nunique()} sizes, N = {whole(sizes.min())} to {whole(sizes.max())} ({_text(runs, 'family')})",
        ),
        ("batches", f"{batches.nunique()} sizes, B = {whole(batches.min())} to {whole(batches.max())} tokens"),
        ("tokens per run", f"{number(float(runs['tokens'].min()))} to {number(float(runs['tokens'].max()))}"),
        ("passes over the text", f"at most {number(passes.max(), 2)}" if len(passes) else "not recorded"),
        ("schedule", _text(runs, "schedule")),
        ("device and precision", f"{_text(runs, 'device')}, {_text(runs, 'precision')}"),
        ("compute", f"{number(meta['flops_total'])} FLOP = {number(meta['flops_total'] / PF_DAY)} PF-days"),
        ("training time", training_time(meta)),
        ("seed noise", f"{meta['sigma']:.2%} of the loss (standard deviation, {noise})"),
        ("tuning scatter", f"{meta['tuning']:.2%} of the steps (standard deviation between cells)"),
        ("convention", f"{DEFINITIONS[meta['convention']]}; losses in nats per token"),
    ]


def _figure(name: str, files: Sequence[Path]) -> dict[str, str]:
    """A figure as a data URI, with the first paragraph of its module as caption."""
    svg = next(path for path in files if path.suffix == ".svg")
    caption = " ".join((module(name).__doc__ or name).strip().split("\n\n")[0].split())
    picture = base64.b64encode(svg.read_bytes()).decode()
    return {"name": name, "caption": caption, "src": f"data:image/svg+xml;base64,{picture}"}


def _why_missing(name: str, laws: Laws) -> str:
    law = module(name).LAW
    reasons = [w["message"] for w in laws.warnings if w["law"] == law]
    return "; ".join(reasons) or "the laws it shows need more runs"


def _text(runs: pd.DataFrame, column: str) -> str:
    return ", ".join(sorted(map(str, runs[column].dropna().unique()))) or "not recorded"


def _origin(source: Path) -> list[str]:
    """The sweep's own commands and revisions, from its runs' manifests; none where the table came alone."""
    lines = set()
    for file in (source / RUNS_DIR).glob(f"*/{MANIFEST_FILE}"):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            command = shlex.join([Path(manifest["argv"][0]).name, *manifest["argv"][1:]])
        except (OSError, ValueError, LookupError, TypeError):  # a damaged manifest costs a line, not the report
            continue
        git = manifest.get("git") or {}
        changes = " with local changes" if git.get("dirty") else ""
        lines.add(f"{command}  # revision {git['sha'][:12]}{changes}" if git.get("sha") else command)
    return sorted(lines)


def _versions() -> str:
    names = ("isoloss", "numpy", "pandas", "scipy", "torch", "matplotlib")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return ", ".join([f"Python {platform.python_version()}", *found])
