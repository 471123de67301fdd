"""The run table and its curves, read from Parquet or CSV and checked. What every law starts from.

A table holds one data set unless pooling is asked for, finite positive losses, and the runs that ended as `done`;
runs with another status are counted and named in `Table.dropped`, never silently lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from sweep.schema import CURVE_COLUMNS, CURVES_TABLE, RUN_COLUMNS, RUNS_TABLE, InputError

# Columns without which no law can be derived; the schema's others are filled with nulls where a table lacks them.
NEEDED_RUN_COLUMNS = ("run_id", "params", "batch_tokens", "lr", "schedule", "seed", "status")
NEEDED_CURVE_COLUMNS = ("run_id", "step", "tokens", "test_loss")
POSITIVE = ("params", "batch_tokens", "lr")  # of every run that is used
STATED = ("seed", "schedule")


@dataclass(frozen=True)
class Table:
    """Finished runs and their evaluations.

    runs: one row a run, columns of `sweep.schema.RUN_COLUMNS`, status `done` only.
    curves: one row an evaluation of those runs, columns of `CURVE_COLUMNS`, sorted by run and tokens.
    dropped: run_id -> status of the runs that did not finish.
    source: where it was read from, for messages.
    pooled: runs on different data were admitted.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    dropped: dict[str, str] = field(default_factory=dict)
    source: str = "table"
    pooled: bool = False


def load(path: Path, *, pool: bool = False) -> Table:
    """Read a sweep directory or its runs file (`runs.parquet`, `*.csv`; the curves lie beside it as `curves.*`).

    Raises InputError where a file, a column or a value that every law needs is missing, a loss, size, batch or rate is
    not a positive number, an evaluation occurs twice, or the runs were made on different data and `pool` is false.
    """
    path = Path(path)
    runs_path, curves_path = _files(path)
    return make_table(_read(runs_path), _read(curves_path), source=str(path), pool=pool)


def make_table(runs: pd.DataFrame, curves: pd.DataFrame, *, source: str = "table", pool: bool = False) -> Table:
    """Check two frames and keep the finished runs. Raises InputError as `load` does."""
    _need(runs, NEEDED_RUN_COLUMNS, f"{source}: the run table")
    _need(curves, NEEDED_CURVE_COLUMNS, f"{source}: the curves")
    runs, curves = _conform(runs, RUN_COLUMNS), _conform(curves, CURVE_COLUMNS)
    double = runs["run_id"][runs["run_id"].duplicated()]
    if len(double):
        raise InputError(f"{source}: run {double.iloc[0]} occurs twice in the run table; remove one of the rows")
    done = runs["status"] == "done"
    dropped = dict(zip(runs["run_id"][~done], runs["status"][~done], strict=True))
    runs = runs[done].reset_index(drop=True)
    if runs.empty:
        raise InputError(f"{source}: no run is done ({len(dropped)} unfinished or failed); see `isoloss status`")
    _usable_runs(runs, source)
    _one_data_set(runs, source, pool)
    curves = curves[curves["run_id"].isin(runs["run_id"])]
    curves = curves.sort_values(["run_id", "tokens"], kind="stable").reset_index(drop=True)
    _usable_curves(curves, source)
    missing = set(runs["run_id"]) - set(curves["run_id"][curves["tokens"] > 0])
    if missing:
        raise InputError(
            f"{source}: run {min(missing)} has no evaluation past its start in the curves; run `isoloss collect` again"
        )
    return Table(_fill_from_curves(runs, curves), curves, dropped, source, pool and runs["data_hash"].nunique() > 1)


def _files(path: Path) -> tuple[Path, Path]:
    if path.is_dir():
        files = path / RUNS_TABLE, path / CURVES_TABLE
        for file in files:
            if not file.is_file():
                raise InputError(f"{path}: no {file.name} here; run `isoloss collect {path}` first")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory")
    curves = path.with_name(path.name.replace("runs", "curves"))
    if "runs" not in path.name or not curves.is_file():
        raise InputError(f"{path}: expected a runs file such as {RUNS_TABLE} with its {CURVES_TABLE} beside it")
    return path, curves


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"run_id": "string"}) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
        raise InputError(f"{path}: unreadable ({str(error).splitlines()[0]}); run `isoloss collect` again") from error


def _fill_from_curves(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """What a table from elsewhere may lack and the last evaluation knows: steps, tokens, test loss, and C = 6 N D."""
    last = curves.groupby("run_id").last()
    filled = {name: runs[name].fillna(runs["run_id"].map(last[of])) for name, of in
              (("steps", "step"), ("tokens", "tokens"), ("test_loss", "test_loss"))}  # fmt: skip
    flops = runs["flops"].fillna(6 * runs["params"] * filled["tokens"])
    return runs.assign(**filled, flops=flops).astype(RUN_COLUMNS)


def _need(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(f"{what} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _conform(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The schema's columns with its types; absent ones become null."""
    data = {}
    for name, dtype in columns.items():
        values = frame[name] if name in frame.columns else pd.Series(pd.NA, index=frame.index, dtype="object")
        try:
            data[name] = values.astype(dtype)  # type: ignore[call-overload]
        except (TypeError, ValueError) as error:
            raise InputError(f"column {name} does not hold {dtype} values ({error})") from error
    return pd.DataFrame(data)


def _usable_runs(runs: pd.DataFrame, source: str) -> None:
    for name in (*POSITIVE, *STATED):
        bad = runs[name].isna()
        if name in POSITIVE:
            values = runs[name].to_numpy(dtype=float, na_value=np.nan)
            bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            row = runs[bad].iloc[0]
            what = "a positive number" if name in POSITIVE else "stated"
            raise InputError(
                f"{source}: {name} of run {row['run_id']} is {row[name]}, not {what}; correct the run table"
            )


def _one_data_set(runs: pd.DataFrame, source: str, pool: bool) -> None:
    hashes = runs["data_hash"].dropna().unique()
    if len(hashes) > 1 and not pool:
        names = ", ".join(f"{h} ({(runs['data_hash'] == h).sum()} runs)" for h in hashes[:3])
        raise InputError(
            f"{source}: runs on different data ({names}) are not pooled; split the table by data_hash, or give "
            "--pool-data"
        )


def _usable_curves(curves: pd.DataFrame, source: str) -> None:
    """Losses are positive, tokens are not negative, and no evaluation occurs twice."""
    loss, tokens = (curves[name].to_numpy(dtype=float, na_value=np.nan) for name in ("test_loss", "tokens"))
    for name, good, what in (
        ("test_loss", np.isfinite(loss) & (loss > 0), "a positive number"),
        ("tokens", np.isfinite(tokens) & (tokens >= 0), "a number of tokens"),
    ):
        if not good.all():
            row, count = curves[~good].iloc[0], int((~good).sum())
            raise InputError(
                f"{source}: {name} {row[name]} of run {row['run_id']} at step {row['step']} is not {what} "
                f"({count} such row{'s' * (count > 1)}); remove the row or mark the run diverged"
            )
    double = curves.duplicated(["run_id", "tokens"])
    if double.any():
        row = curves[double].iloc[0]
        raise InputError(
            f"{source}: run {row['run_id']} has two evaluations at {row['tokens']:.0f} tokens in the curves; "
            "run `isoloss collect` again or remove one of the rows"
        )
