"""The analysis verbs of `isoloss`, which read tables and fits and write files; nothing is trained.

Here are `analyze` and `figures`; the others have modules of their own. Heavy imports wait until a verb runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.parser import CONVENTIONS, Parser, count, device

if TYPE_CHECKING:
    from analysis.chain.results import Laws
    from analysis.tables.table import Table

FITS_FILE = "fits.json"
ADJUSTED_FILE = "adjusted.parquet"  # S_min, E_min and C_min at every logged step
FIGURES_DIR = "figures"
REPLICATES = 200

ANALYZE_HELP = """\
Derive all laws of a sweep, with intervals, and write fits.json, adjusted.parquet (S_min and C_min of every
logged step), figures/ and report.html.

example: isoloss analyze sweeps/quick
         isoloss analyze sweeps/quick/runs.parquet --out analysis --bootstrap 1000"""

FIGURES_HELP = """\
Draw every figure as PNG, SVG and PDF, each beside a CSV of exactly what it shows:
from the constants the papers print, or from a sweep.

example: isoloss figures published --out figures
         isoloss figures sweeps/quick"""


def run(verb: str, argv: list[str]) -> int:
    """Run an analysis verb and return its exit code. Raises InputError where the input is unusable."""
    if verb in ("fit", "predict"):
        return int(import_module(f"analysis.cli.{verb}").run(argv))
    parser = _parser(verb)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    if verb == "analyze":
        return _analyze(arguments)
    return _figures(arguments)


def _parser(verb: str) -> argparse.ArgumentParser:
    text = {"analyze": ANALYZE_HELP, "figures": FIGURES_HELP}[verb]
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(f"isoloss {verb}", description=text, formatter_class=formatter, allow_abbrev=False)
    what = "a sweep directory or its runs table (runs.parquet, runs.csv)"
    if verb == "analyze":
        parser.add_argument("source", metavar="DIR", type=Path, help=what)
        parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: DIR/analysis)")
    else:
        parser.add_argument("source", metavar="published|DIR", help=f"the papers' constants, or {what}")
        default = f"{FIGURES_DIR}/published, or DIR/analysis/{FIGURES_DIR}"
        parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {default})")
    text = "simulated sweeps behind the intervals (default %(default)s; 0: no intervals)"
    parser.add_argument("--bootstrap", type=count, default=REPLICATES, metavar="K", help=text)
    parser.add_argument("--seed", type=count, default=0, metavar="I", help="of those simulations (default 0)")
    parser.add_argument("--pool-data", action="store_true", help="take runs on different texts together")
    text = "count N and C so, from the stored components (default kaplan)"
    parser.add_argument("--convention", choices=CONVENTIONS, default="kaplan", help=text)
    choices = ("auto", "cpu", "cuda")
    parser.add_argument("--device", choices=choices, default="auto", help="where laws are fitted (default auto)")
    return parser


def _analyze(arguments: argparse.Namespace) -> int:
    from analysis.figures import write_measured
    from analysis.report.headline import duration, headline
    from analysis.report.page import write_report

    began = time.perf_counter()
    source = arguments.source
    out = arguments.out or _default_out(source)
    laws, table = _derive(source, arguments)
    out.mkdir(parents=True, exist_ok=True)
    fits = out / FITS_FILE
    fits.write_text(json.dumps(laws.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    laws.adjusted.write(out / ADJUSTED_FILE)
    figures = write_measured(laws, out / FIGURES_DIR)
    report = write_report(laws, table, figures, out, command=f"isoloss analyze {source}")
    for warning in laws.warnings:
        print(f"warning: {warning['law']}: {warning['message']}")
    print(
        f"{laws.meta['runs']} runs; intervals hold {laws.level:.0%}"
        if arguments.bootstrap
        else f"{laws.meta['runs']} runs"
    )
    lines = headline(laws)
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"  {line.name:<{width}}  {line.value}")
    print(f"  {'analysis':<{width}}  {duration(time.perf_counter() - began)}")
    print(f"fits    {fits}\nfigures {out / FIGURES_DIR} ({len(figures)})\nreport  {report}")
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    from analysis.figures import NAMES, write_measured, write_published

    if arguments.source == "published":
        out = arguments.out or Path(FIGURES_DIR) / "published"
        figures = write_published(out)
    else:
        source = Path(arguments.source)
        out = arguments.out or _default_out(source) / FIGURES_DIR
        laws, _ = _derive(source, arguments)
        figures = write_measured(laws, out)
        for name in [name for name in NAMES if name not in figures]:
            print(f"not drawn: {name}; `isoloss analyze {source}` says what is missing")
    print(f"{len(figures)} figures in {out}: {', '.join(figures)}")
    return 0


def _default_out(source: Path) -> Path:
    return (source if source.is_dir() else source.parent) / "analysis"


def _derive(source: Path, arguments: argparse.Namespace) -> tuple[Laws, Table]:
    from analysis.chain.derive import derive
    from analysis.tables.table import load

    table = load(source, pool=arguments.pool_data)
    common = {"convention": arguments.convention, "replicates": arguments.bootstrap, "seed": arguments.seed}
    return derive(table, **common, device=device(arguments.device)), table
