"""The report's tables of points, optima and runs, and of what was left out: rows of words, by column."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from analysis.chain.results import Laws
from analysis.figures.text import number, whole
from analysis.tables.table import Table

MOST_ROWS = 500  # runs shown; the run table has all of them
MOST_NAMES = 8

Cells = dict[str, str]


def critical_table(laws: Laws) -> list[Cells]:
    """S_min, E_min and B_crit of each model and target loss."""
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


def optima_table(laws: Laws) -> list[Cells]:
    """The best size at each compute of the envelopes."""
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


def run_table(table: Table) -> list[Cells]:
    """The finished runs, at most `MOST_ROWS` of them."""
    runs = table.runs.sort_values(["params", "batch_tokens", "lr", "seed"]).head(MOST_ROWS)
    return [
        {
            "run": str(run["run_id"]),
            "model": "–" if pd.isna(run["n_layer"]) else f"{run['n_layer']}x{run['d_model']}",
            "N": whole(as_float(run["params"])),
            "B (tokens)": whole(as_float(run["batch_tokens"])),
            "lr": f"{run['lr']:.3g}",
            "seed": str(run["seed"]),
            "steps": whole(as_float(run["steps"])),
            "D (tokens)": number(as_float(run["tokens"])),
            "FLOP": number(as_float(run["flops"])),
            "test loss": number(as_float(run["test_loss"]), 4),
            "seconds": number(as_float(run["wall_s"])),
        }
        for run in runs.to_dict("records")
    ]


def exclusions(laws: Laws, table: Table) -> list[Cells]:
    """What no law was fitted to, with the reason and how much of it: runs, then evaluations."""
    rows = []
    left: dict[str, list[str]] = defaultdict(list)
    for run_id, status in table.dropped.items():
        left[status].append(run_id)
    finished = table.runs["run_id"].astype(str)
    others = finished[~finished.isin(set(laws.runs["run_id"].astype(str)))].tolist()
    if others:
        left["of another recipe, or a shorter copy of a run that was used"] = others
    for reason, run_ids in left.items():
        named = ", ".join(run_ids[:MOST_NAMES]) + (", ..." if len(run_ids) > MOST_NAMES else "")
        rows.append(
            {"left out": f"{len(run_ids)} runs" if len(run_ids) > 1 else "1 run", "reason": reason, "which": named}
        )
    spans = table.spans()
    warmup = np.repeat(table.runs["warmup_tokens"].to_numpy(dtype=float, na_value=0.0), spans[:, 1] - spans[:, 0])
    early = int((table.curves["tokens"].to_numpy(dtype=float) < warmup).sum())
    if early:
        rows.append(
            {"left out": f"{early:,} evaluations", "reason": "inside the warm-up", "which": f"of {len(warmup):,}"}
        )
    return rows


def _with_error(value: float | None, error: float | None) -> str:
    shown = number(value)
    return shown if error is None or error != error else f"{shown} ± {number(error, 2)}"


def as_float(value: Any) -> float | None:
    """A table's value, None where it is missing."""
    return None if value is None or value is pd.NA or isinstance(value, str) else float(value)
