"""From run records to the two tables of a sweep, runs.parquet and curves.parquet, with the schema's columns exactly."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.accounting import count_flops, count_params
from sweep.record import Record, read_run, run_dirs
from sweep.schema import CURVE_COLUMNS, CURVES_TABLE, RUN_COLUMNS, RUNS_DIR, RUNS_TABLE, InputError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def collect(sweep_dir: Path) -> tuple[Path, Path]:
    """Write the run table and the curves of all records under `sweep_dir`; returns their paths.

    Runs in every status are included; the status says what they are. A damaged record is named in a warning and left
    out, a damaged line of a curve too. Raises InputError where there is no readable record at all.
    """
    import pandas as pd

    folders = run_dirs(sweep_dir)
    if not folders:
        raise InputError(
            f"{sweep_dir}: no runs in {RUNS_DIR}/; is this a sweep directory, and has `isoloss sweep` run?"
        )
    runs: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in CURVE_COLUMNS}  # of a run each: rows take gigabytes
    for folder in folders:
        try:
            record = read_run(sweep_dir, folder.name)
        except InputError as error:
            log.warning("left out: %s", error)
            continue
        for problem in record.problems:
            log.warning(problem)
        runs.append(run_row(record))
        curves["run_id"].append(np.full(len(record.rows), record.run_id, object))
        for name in CURVE_COLUMNS.keys() - {"run_id"}:
            curves[name].append(np.array([row[name] for row in record.rows], float))
    if not runs:
        raise InputError(f"{sweep_dir}: none of its {len(folders)} records can be read; see the warnings above")
    columns = {name: np.concatenate(values) for name, values in curves.items()}
    return (
        _write(pd.DataFrame(runs), RUN_COLUMNS, sweep_dir / RUNS_TABLE),
        _write(pd.DataFrame(columns), CURVE_COLUMNS, sweep_dir / CURVES_TABLE),
    )


def run_row(record: Record) -> dict[str, Any]:
    """The values of RUN_COLUMNS for one record; None where the run has not come to know them."""
    spec, status, manifest = record.spec, record.status, record.manifest
    model, params, flops = spec.model, count_params(spec.model), count_flops(spec.model)
    last: dict[str, Any] = record.rows[-1] if record.rows else {}
    return {
        "run_id": record.run_id,
        **{name: getattr(model, name) for name in ("family", "n_layer", "d_model", "n_head", "d_head", "d_ff")},
        "n_ctx": model.n_ctx,
        "vocab_size": model.vocab_size,
        **{
            f"params_{name}": getattr(params, name)
            for name in ("embedding", "position", "attention", "mlp", "norm_bias", "head", "total")
        },
        "params": params.params,
        "flops_per_token": flops.matrices,
        "flops_per_token_context": flops.context,
        "flops_per_token_head": flops.head,
        "batch_tokens": spec.batch_tokens,
        "steps": spec.steps,
        "tokens": spec.tokens,
        "flops": flops.matrices * spec.tokens,
        "optimizer": spec.optimizer.name,
        "lr": spec.optimizer.lr,
        "beta2": spec.optimizer.beta2,
        "weight_decay": spec.optimizer.weight_decay,
        "schedule": spec.schedule.name,
        "schedule_steps": spec.schedule.schedule_steps,
        "warmup_tokens": spec.schedule.warmup_steps * spec.batch_tokens,
        "weight_average": spec.weight_average,
        "precision": spec.precision,
        "seed": spec.seed,
        "status": status["status"],
        "test_loss": last.get("test_loss"),
        "test_loss_se": last.get("test_loss_se"),
        "unique_tokens": manifest.get("unique_tokens"),
        "epochs": status.get("epochs"),
        "bytes_per_token": manifest.get("bytes_per_token"),
        "data_name": spec.data.name,
        "data_hash": manifest.get("data_hash"),
        "wall_s": status.get("wall_s", last.get("elapsed_s")),
        "tokens_per_s": status.get("tokens_per_s"),
        "mfu": status.get("mfu"),
        "device": manifest.get("device"),
    }


def _write(table: pd.DataFrame, columns: dict[str, str], path: Path) -> Path:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    table[list(columns)].astype(columns).to_parquet(part, index=False)
    part.rename(path)
    return path
