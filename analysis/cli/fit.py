"""`isoloss fit LAW TABLE`: one law fitted to anybody's table or to a sweep, printed and written as JSON.

Heavy imports wait until a law is fitted, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from analysis.cli.laws import LAWS, Law
from analysis.cli.parser import CONVENTIONS, Parser, count
from sweep.schema import InputError

COMPARED = ("isoflop", "frontier")  # laws whose exponents under all conventions are one table
# Flags of a table of points: with one of them a sweep is read as its runs' last evaluations.
OF_POINTS = (
    "by", "columns", "weights", "drop_highest", "loss", "no_offset", "holdout_above", "diagnose", "method", "noise",
    "optimal_batch", "critical_batch", "base",
)  # fmt: skip

HELP = """\
Fit one law to a table (CSV or Parquet; any two of the columns params, tokens and flops give the third, C = 6ND) or to
a sweep directory, with standard errors and, with --bootstrap, 90% intervals. What is left out is counted and said.

laws
"""
EXAMPLE = """
example: isoloss fit parametric runs.csv --columns params=N,tokens=D --where "loss < 4" --bootstrap 1000 --json fit.json
         isoloss fit isoflop --help      (each law's columns and flags)"""


def run(argv: list[str]) -> int:
    """Fit, print, write; return the exit code, 1 where a fit did not converge. Raises InputError for unusable input."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    from analysis.cli.show import lines

    law = LAWS[arguments.law]
    result = _compare(law, arguments) if getattr(arguments, "convention", None) == "all" else _fit(law, arguments)
    print("\n".join(lines(result)))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"json  {arguments.json}")
    return int(not result.get("converged", True))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    width = max(map(len, LAWS))
    listed = "\n".join(f"  {name:<{width}}  {law.says.splitlines()[0].rstrip(';')}" for name, law in LAWS.items())
    parser = Parser(
        "isoloss fit", description=HELP + listed + "\n" + EXAMPLE, formatter_class=formatter, allow_abbrev=False
    )
    laws = parser.add_subparsers(dest="law", metavar="LAW", required=True, parser_class=Parser)
    for law in LAWS.values():
        text = f"{law.says}.\n\nexample: isoloss fit {law.example}"
        one = laws.add_parser(law.name, description=text, formatter_class=formatter, allow_abbrev=False)
        _common_flags(one, law)
        if law.flags is not None:
            law.flags(one)
    return parser


def _common_flags(parser: argparse.ArgumentParser, law: Law) -> None:
    add = parser.add_argument
    add("table", metavar="TABLE", type=Path, help="CSV or Parquet, or a sweep directory")
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    add("--by", metavar="COL", help="one fit for each value of this column" if law.weights else "column of the models")
    add("--bootstrap", type=count, default=0, metavar="K", help="replicates behind the intervals (default 0: none)")
    add("--seed", type=count, default=0, metavar="I", help="of the replicates (default 0)")
    add("--pool-data", action="store_true", help="of a sweep: take runs on different texts together")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it is fitted (default auto)")
    text = "the table's own names, as params=N,tokens=D"
    add("--columns", type=_renaming, metavar="NAME=COL,..", help=text)
    add("--where", metavar="EXPR", help='use only rows such as "loss < 4 and params > 1e6"')
    if law.highest:
        add("--drop-highest", type=count, default=0, metavar="K", help="leave out the K highest losses (of a group)")
    if law.weights:
        add("--weights", metavar="COL", help="column of weights (default: weight, where there is one)")
    if law.robust:
        text = f"of the residuals of logarithms: squared, huber or absolute (default {law.default_loss})"
        add("--loss", choices=("squared", "huber", "absolute"), help=text)
        add("--delta", type=float, default=1e-3, metavar="X", help="where Huber's loss turns linear (default 0.001)")
    if law.name != "critical-batch":
        text = "fit below this compute, and say how far the law misses what lies above"
        add("--holdout-above", type=float, metavar="FLOPS", help=text)
        add("--diagnose", action="store_true", help="which runs move the law most")
    if {"params", "flops"} & set(law.columns):
        names = (*CONVENTIONS, "all") if law.name in COMPARED else CONVENTIONS
        text = f"count N and C anew from the stored components: {', '.join(names)}"
        add("--convention", choices=names, metavar="NAME", help=text)


def _renaming(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 or not all(word.strip() for word in pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text} is not of the form params=N,tokens=D")
    return {target.strip(): source.strip() for target, source in pairs}


def is_sweep(path: Path) -> bool:
    """Whether there are runs with curves: a sweep directory, or its runs table with the curves beside it."""
    if path.is_dir():
        return True
    curves = path.with_name(path.name.replace("runs", "curves"))
    return "runs" in path.name and path.is_file() and curves.is_file()


def _of_points(law: Law, arguments: argparse.Namespace) -> bool:
    """Whether the table is one of points, or a sweep of which only the ends of the runs are asked for."""
    flags = law.name == "power-law" or any(getattr(arguments, name, None) for name in OF_POINTS)
    return flags or not is_sweep(arguments.table)


def _fit(law: Law, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fit's JSON."""
    if _of_points(law, arguments):
        from analysis.cli.fit_points import fit_points

        return fit_points(law, arguments)
    from analysis.cli.chain import fit_sweep

    return fit_sweep(law.name, arguments)


def _compare(law: Law, arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON of one law under every convention."""
    if not _of_points(law, arguments):
        from analysis.cli.chain import compare_sweep

        return compare_sweep(law.name, arguments)
    if arguments.by is not None:
        raise InputError(f"{law.name}: --by and --convention all are two tables; choose a group with --where")
    from analysis.cli.fit_points import fit_points

    found = {
        name: fit_points(law, argparse.Namespace(**vars(arguments) | {"convention": name})) for name in CONVENTIONS
    }
    first = found[CONVENTIONS[0]]
    about = {name: first[name] for name in ("law", "table", "bootstrap", "exclusions")}
    return about | {"conventions": found, "converged": all(part["converged"] for part in found.values())}
