"""One law fitted to a table of points, with what the table and the residuals say against it, as JSON."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cli.laws import Law, array
from analysis.cli.parser import device
from analysis.outcome import Outcome, plain
from analysis.tables.coverage import warn_parabolas, warn_points
from analysis.tables.points import WEIGHT, Points, load
from analysis.uncertainty.diagnostics import Diagnosis, diagnose
from analysis.uncertainty.holdout import hold_out
from analysis.uncertainty.influence import parametric_refit
from analysis.uncertainty.residuals import residuals_of
from sweep.schema import CURVES_TABLE, RUNS_TABLE, InputError

FAILED = "not_converged"  # the code of that warning


def fit_points(law: Law, arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON of a law fitted to a table of points, one item a group with --by."""
    if law.robust:
        arguments.loss = arguments.loss or law.default_loss
    points = load(
        _points_path(arguments.table),
        law.needs(arguments),
        columns=arguments.columns,
        where=arguments.where,
        by=arguments.by,
        drop_highest=getattr(arguments, "drop_highest", 0),
        weights=getattr(arguments, "weights", None),
        convention=getattr(arguments, "convention", None),
    )
    common = {"bootstrap": arguments.bootstrap, "seed": arguments.seed, "device": device(arguments.device)}
    if arguments.by is None or law.name == "critical-batch":
        result = _outcome(law, points.frame, arguments, common)
    else:
        parts = [(label, _in_group(law, label, rows, arguments, common)) for label, rows in points.groups()]
        result = {name: parts[0][1][name] for name in ("law", "level", "bootstrap", "device")}
        result["interval"] = "; ".join(dict.fromkeys(part["interval"] for _, part in parts))
        result["points"] = sum(part["points"] for _, part in parts)
        result["seconds"] = sum(part["seconds"] for _, part in parts)
        result["by"] = arguments.by
        result["converged"] = all(part["converged"] for _, part in parts)
        result["groups"] = [{"group": plain(label), "target_loss": None} | part for label, part in parts]
        result["warnings"] = [
            {**w, "message": f"{arguments.by} {label}: {w['message']}"}
            for label, part in parts
            for w in part["warnings"]
        ]
    return result | _about(points, arguments, result["warnings"])


def _points_path(path: Path) -> Path:
    """A sweep's runs table stands for its directory, where the curves are."""
    return path.parent if path.name == RUNS_TABLE and (path.parent / CURVES_TABLE).is_file() else path


def _about(points: Points, arguments: argparse.Namespace, warnings: list[dict[str, str]]) -> dict[str, Any]:
    """What the table has to say: where it is from, what was left out, what looks wrong."""
    return {
        "table": str(arguments.table),
        "weights": (arguments.weights or WEIGHT) if WEIGHT in points.frame else None,
        "convention": getattr(arguments, "convention", None),
        "exclusions": points.exclusions,
        "warnings": [*points.warnings, *warnings],
    }


def _in_group(
    law: Law, label: object, rows: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]
) -> dict[str, Any]:
    try:
        return _outcome(law, rows, arguments, common)
    except InputError as error:
        raise InputError(f"{arguments.by} {label}: {error}; leave it out with --where") from error


def _outcome(law: Law, rows: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """One fit with its diagnosis, as JSON."""

    found = law.fit(rows, arguments, dict(common))
    _refuse_nothing(law, found)
    warn_points(_with_the_rest(found.frames.get("points"), rows), law.name, found.warnings)
    if law.name == "isoflop" and arguments.method != "akima":
        warn_parabolas(found.frames["optima"], law.name, found.warnings)
    more: dict[str, Any] = {"converged": all(w["code"] != FAILED for w in found.warnings)}
    if law.name != "critical-batch":
        diagnosis = _diagnosis(law, found, rows, arguments, common)
        diagnosis.warn(law.name, found.warnings)
        more["diagnosis"] = diagnosis.to_json() | {"text": diagnosis.lines()}
    if law.robust:
        more["loss_function"] = arguments.loss
    result = found.to_json() | more
    if law.name == "power-law":
        result |= {"x": arguments.x, "y": arguments.y}
        result["span"] = {arguments.x: result["span"]["x"], arguments.y: result["span"]["y"]}
    return result


def _refuse_nothing(law: Law, found: Outcome) -> None:
    """A law of optima without any optimum has nothing to say but why."""
    optima = found.frames.get("optima")
    if optima is None or optima["used"].any() or any(math.isfinite(e.value) for e in found.estimates.values()):
        return
    raise InputError(f"{law.name}: no optimum to fit: {'; '.join(w['message'] for w in found.warnings)}")


def _with_the_rest(points: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame:
    """A fit's points with what else the table knows of them."""
    if points is None or len(points) != len(rows):
        return rows
    more = [name for name in ("unique_tokens", "schedule") if name in rows and name not in points]
    return points.assign(**{name: rows[name].to_numpy() for name in more})


def _diagnosis(
    law: Law, found: Outcome, rows: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]
) -> Diagnosis:
    """Residuals always; the influence of the runs and a hold-out where they are asked for."""

    run = rows["run"].to_numpy() if "run" in rows and len(found.frames.get("points", ())) == len(rows) else None
    names = [n for n in ("params", "tokens", "flops", "loss", "steps_min", "unique_tokens") if n in rows]
    columns = {name: rows[name].to_numpy(dtype=float) for name in names}
    if law.name == "power-law":
        columns |= {"x": rows[arguments.x].to_numpy(dtype=float), "y": rows[arguments.y].to_numpy(dtype=float)}

    def fit(keep: Any, bootstrap: int = 0) -> Outcome:
        return law.fit(rows[keep], arguments, common | {"bootstrap": bootstrap})

    held = None
    if arguments.holdout_above is not None:
        held = hold_out(lambda keep: fit(keep, arguments.bootstrap), columns, arguments.holdout_above, whole=found)
    if not arguments.diagnose:
        return Diagnosis(residuals_of(found, run=run), None, held)
    refit = None
    if law.name == "parametric":
        refit = parametric_refit(
            columns["params"], columns["tokens"], columns["loss"], found.estimates, weights=array(rows, "weight"),
            kind=arguments.loss, delta=arguments.delta, device=common["device"],
        )  # fmt: skip
    if run is None and law.name != "frontier":  # whose sizes are left out
        run = rows.index.to_numpy()  # so that rows have the table's own numbers
    part = diagnose(found, fit, columns, run=run, refit=refit)
    return Diagnosis(part.residuals, part.influence, held)
