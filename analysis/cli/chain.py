"""A law of a sweep, derived from its curves with everything that the whole analysis knows of them."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from typing import Any

from analysis.chain.conventions import NAMES, compare
from analysis.chain.derive import derive
from analysis.cli.parser import device
from analysis.outcome import plain
from analysis.tables import where
from analysis.tables.table import Table, load
from sweep.schema import InputError

_ASKS = {"repeated": "no run passes over its data more than once; add some, such as data.max_epochs=8 allows"}


def fit_sweep(law: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The law's section of fits.json, with what was left out. Raises InputError where the sweep does not support it."""
    table, exclusions = _read(arguments)
    convention = getattr(arguments, "convention", None) or "kaplan"
    where_fitted = device(arguments.device)
    found = derive(
        table, convention=convention, replicates=arguments.bootstrap, seed=arguments.seed, device=where_fitted
    )
    laws = found.to_json()
    if law not in laws["laws"]:
        said = [w["message"] for w in laws["warnings"] if w["law"] == law]
        reason = "; ".join(said) or _ASKS.get(law, "the sweep has nothing to fit it to")
        raise InputError(f"{arguments.table}: {law}: {reason}")
    section = laws["laws"][law]
    about = {
        "table": str(arguments.table),
        "runs": laws["meta"]["runs"],
        "exclusions": exclusions,
        "bootstrap": arguments.bootstrap,
        "seconds": laws["meta"]["seconds"],
        "device": where_fitted,
        "warnings": [*(w for w in laws["warnings"] if w["law"] == "table"), *section["warnings"]],
    }
    if arguments.bootstrap:
        about["interval"] = "simulated sweeps with the noise of this one, the whole chain of laws on each"
    return section | about


def compare_sweep(law: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The exponents of one law under every convention, from the same runs with the same simulated noise."""
    table, exclusions = _read(arguments)
    rows = compare(table, law, bootstrap=arguments.bootstrap, seed=arguments.seed)
    found = {}
    for row in rows.to_dict("records"):
        estimates = {
            name: {"value": row[name], "se": None, "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
            for name in NAMES
            if row[name] == row[name]  # nan where the convention has no line
        }
        said = [{"law": law, "code": "no_line", "message": row["note"]}] if row["note"] else []
        found[row["convention"]] = {"definition": row["definition"], "estimates": estimates, "warnings": said}
    about = {"law": law, "table": str(arguments.table), "bootstrap": arguments.bootstrap, "exclusions": exclusions}
    return dict(plain(about | {"conventions": found}))


def _read(arguments: argparse.Namespace) -> tuple[Table, list[dict[str, Any]]]:
    """The sweep's runs that are asked for, and what was left out."""
    table = load(arguments.table, pool=arguments.pool_data)
    exclusions = [{"reason": f"status {status}", "count": n} for status, n in Counter(table.dropped.values()).items()]
    if arguments.where is not None:
        table, number = _filtered(table, arguments.where)
        exclusions += [{"reason": f"outside --where {arguments.where}", "count": number}] if number else []
    return table, exclusions


def _filtered(table: Table, expression: str) -> tuple[Table, int]:
    """The runs for which the expression holds, with their curves, and the number of the others."""
    keep = where.rows(table.runs, expression)
    if not keep.any():
        raise InputError(f"{table.source}: --where {expression} leaves no run")
    runs = table.runs[keep].reset_index(drop=True)
    curves = table.curves[table.curves["run_id"].isin(runs["run_id"])].reset_index(drop=True)
    return replace(table, runs=runs, curves=curves), int((~keep).sum())
