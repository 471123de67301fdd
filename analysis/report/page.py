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
from typing import Any

import pandas as pd

from analysis import published as pub
from analysis.chain.results import Laws
from analysis.figures import NAMES, module
from analysis.figures.text import interval, number, whole
from analysis.report.headline import headline, training_time
from analysis.tables.table import Table
from sweep.schema import MANIFEST_FILE, PF_DAY, RUNS_DIR

TEMPLATE = "report.html"
REPORT = "report.html"

# law -> (heading, what it is); in the order of the page.
LAW_TEXT = {
    "critical-batch": ("Critical batch size", "B_crit = B_* / L^(1/α_B), in tokens; B_* is its value at one nat."),
    "adjusted": (
        "Frontier, adjusted to C_min",
        "y = coefficient · C_min^exponent along the lower envelope, C_min in FLOP; B at B_crit, S is S_min, "
        "D = 2·B_crit·S_min.",
    ),
    "raw": ("Frontier at the fixed batch", "y = coefficient · C^exponent along the lower envelope, C = 6ND in FLOP."),
    "isoflop": ("IsoFLOP minima", "N ∝ C^a and D ∝ C^b through the minima of the parabolas."),
    "parametric": ("Parametric fit", "L = E + A/N^α + B/D^β; a = β/(α+β), b = α/(α+β)."),
    "kaplan-ns": ("Kaplan's surface", "L(N, S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S."),
}

# Where a paper's exponent can be compared; its constants depend on tokenizer and text and cannot.
PUBLISHED = {
    ("critical-batch", "alpha_B"): f"{pub.ALPHA_B:.2f} (Kaplan)",
    ("critical-batch", "slope"): f"{pub.B_CRIT.exponent:.2f} (Kaplan)",
    ("adjusted", "N exponent"): f"{pub.N_OPT.exponent} (Kaplan)",
    ("adjusted", "B exponent"): f"{pub.B_OPT.exponent} (Kaplan)",
    ("adjusted", "S exponent"): f"{pub.S_OPT.exponent} (Kaplan)",
    ("adjusted", "D exponent"): f"{pub.D_OPT.exponent} (Kaplan)",
    ("adjusted", "L exponent"): f"{pub.L_OF_C_MIN.exponent:.3f} (Kaplan)",
    (
        "raw",
        "N exponent",
    ): f"{pub.N_FIXED_BATCH.exponent} (Kaplan); {pub.APPROACH_1.exponent:.2f} (Hoffmann, approach 1)",
    ("raw", "L exponent"): f"{pub.L_OF_C.exponent:.3f} (Kaplan)",
    ("isoflop", "a"): f"{pub.APPROACH_2.exponent:.2f} (Hoffmann)",
    ("isoflop", "b"): f"{1 - pub.APPROACH_2.exponent:.2f} (Hoffmann)",
    ("parametric", "alpha"): f"{pub.APPROACH_3.alpha:.3f} (Hoffmann); {pub.REFIT.alpha} (Besiroglu)",
    ("parametric", "beta"): f"{pub.APPROACH_3.beta:.3f} (Hoffmann); {pub.REFIT.beta} (Besiroglu)",
    ("parametric", "a"): f"{pub.APPROACH_3.a:.2f} (Hoffmann); {pub.REFIT.a:.2f} (Besiroglu)",
    ("parametric", "b"): f"{pub.APPROACH_3.b:.2f} (Hoffmann); {pub.REFIT.b:.2f} (Besiroglu)",
    ("kaplan-ns", "alpha_N"): f"{pub.SURFACE.alpha_N} (Kaplan)",
    ("kaplan-ns", "alpha_S"): f"{pub.SURFACE.alpha_S} (Kaplan)",
}


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
        laws=_law_tables(laws),
        warnings=laws.warnings,
        critical=_critical_table(laws),
        optima=_optima_table(laws),
        figures=[_figure(name, figures[name]) for name in NAMES if name in figures],
        missing=[(name, _why_missing(name, laws)) for name in NAMES if name not in figures],
        runs=_run_table(table),
        dropped=sorted(table.dropped.items()),
        command=command,
        origin=_origin(Path(table.source)),
        source=table.source,
        versions=_versions(),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def _about(laws: Laws, table: Table) -> list[tuple[str, str]]:
    runs, meta = table.runs, laws.meta
    sizes, batches = runs["params"].astype(float), runs["batch_tokens"].astype(float)
    passes = runs["epochs"].dropna().astype(float)
    noise = "between seeds" if meta["sigma_source"] == "seeds" else "assumed, no cell was repeated"
    text, known = meta["data_name"] or "unnamed", meta["data_hash"] or "not recorded"
    return [
        ("text", f"{text}, data hash {known}, {number(_float(meta['bytes_per_token']))} bytes per token"),
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
        ("compute", f"{number(meta['flops_total'])} FLOP = {number(meta['flops_total'] / PF_DAY)} PF-days (6ND)"),
        ("training time", training_time(meta)),
        ("seed noise", f"{meta['sigma']:.2%} of the loss (standard deviation, {noise})"),
        ("tuning scatter", f"{meta['tuning']:.2%} of the steps (standard deviation between cells)"),
        ("convention", "N = attention and MLP matrices, C = 6ND, losses in nats per token"),
    ]


def _law_tables(laws: Laws) -> list[dict[str, Any]]:
    """Every estimate of every law: heading, description, rows of (name, value, interval, published)."""
    found: dict[str, dict[str, Any]] = {}
    if laws.critical and laws.critical.law:
        found["critical-batch"] = {_name(laws, n): e for n, e in laws.critical.law.items()}
    for kind, fits in (laws.frontier.fits if laws.frontier else {}).items():
        found[kind] = {
            f"{quantity} {part}": getattr(fit, part)
            for quantity, fit in fits.items()
            for part in ("exponent", "coefficient")
            if not (kind == "raw" and quantity == "B")  # fixed, not found
        }
    for key, section in (("parametric", laws.parametric), ("kaplan-ns", laws.surface)):
        if section is not None:
            found[key] = section.estimates
    if laws.isoflop and laws.isoflop.fit:
        found["isoflop"] = laws.isoflop.fit
    tables = []
    for key, (title, text) in LAW_TEXT.items():
        if key in found:
            rows = [
                (name, number(e.value, 4), _range(e), PUBLISHED.get((key, name), "")) for name, e in found[key].items()
            ]
            tables.append({"title": title, "text": text, "rows": rows})
    return tables


def _name(laws: Laws, name: str) -> str:
    at = laws.critical.at_loss if laws.critical else None
    return f"B_crit at loss {at:.3g} (tokens)" if name == "B_crit" and at is not None else name


def _range(estimate: Any) -> str:
    return interval(estimate).partition(" ")[2] or "–"


def _critical_table(laws: Laws) -> list[dict[str, str]]:
    if laws.critical is None:
        return []
    rows = []
    for point in laws.critical.points.to_dict("records"):
        rows.append(
            {
                "model": str(point["group"]),
                "N": whole(point["params"]),
                "loss": number(point["target_loss"]),
                "S_min": _with_error(point["S_min"], point["S_min_se"]),
                "E_min (tokens)": _with_error(point["E_min"], point["E_min_se"]),
                "B_crit (tokens)": _with_error(point["B_crit"], point["B_crit_se"]),
                "batches": str(point["batches"]),
                "used": "yes" if point["used"] else f"no: {point['reason']}",
            }
        )
    return rows


def _optima_table(laws: Laws) -> list[dict[str, str]]:
    if laws.frontier is None:
        return []
    edges = {"interior": "no minimum inside", "smallest": "bound: smallest size", "largest": "bound: largest size"}
    rows = []
    for point in laws.frontier.optima.to_dict("records"):
        inside = bool(point["used"])
        rows.append(
            {
                "axis": "C_min" if point["kind"] == "adjusted" else "C",
                "FLOP": number(point["flops"]),
                "N": number(point["params"] if inside else point["params_run"]),
                "interval": f"{number(point['params_low'])} to {number(point['params_high'])}" if inside else "",
                "loss": number(point["loss"], 4),
                "steps": number(point["steps"]),
                "batch (tokens)": number(point["batch_tokens"]),
                "note": "" if inside else edges[point["edge"]],
            }
        )
    return rows


def _run_table(table: Table) -> list[dict[str, str]]:
    runs = table.runs.sort_values(["params", "batch_tokens", "lr", "seed"])
    return [
        {
            "run": str(run["run_id"]),
            "model": "–" if pd.isna(run["n_layer"]) else f"{run['n_layer']}x{run['d_model']}",
            "N": whole(_float(run["params"])),
            "B (tokens)": whole(_float(run["batch_tokens"])),
            "lr": f"{run['lr']:.3g}",
            "seed": str(run["seed"]),
            "steps": whole(_float(run["steps"])),
            "D (tokens)": number(_float(run["tokens"])),
            "FLOP": number(_float(run["flops"])),
            "test loss": number(_float(run["test_loss"]), 4),
            "seconds": number(_float(run["wall_s"])),
        }
        for run in runs.to_dict("records")
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


def _with_error(value: float | None, error: float | None) -> str:
    shown = number(value)
    return shown if error is None or error != error else f"{shown} ± {number(error, 2)}"


def _float(value: Any) -> float | None:
    return None if value is None or value is pd.NA or isinstance(value, str) else float(value)


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
