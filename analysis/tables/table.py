"""The run table and its curves, read from Parquet or CSV and checked. What every law starts from.

A table holds one data set unless pooling is asked for, finite positive losses, and the runs that ended as `done`;
what is left out is counted and named in `Table.dropped`, never silently lost. Curves of 10,000 runs have 1e7 rows:
of them only the columns that a law reads are loaded, and nothing here goes through rows one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from sweep.schema import CURVES_TABLE, RUN_COLUMNS, RUNS_TABLE, InputError

# Columns without which no law can be derived; the schema's others are filled with nulls where a table lacks them.
NEEDED_RUN_COLUMNS = ("run_id", "params", "batch_tokens", "lr", "schedule", "seed", "status")
NEEDED_CURVE_COLUMNS = ("run_id", "step", "tokens", "test_loss")
POSITIVE = ("params", "batch_tokens", "lr")  # of every run that is used
STATED = ("seed", "schedule")


@dataclass(frozen=True)
class Table:
    """Finished runs and their evaluations.

    runs: one row a run, columns of `sweep.schema.RUN_COLUMNS`, status `done` only.
    curves: one row an evaluation of those runs, columns `NEEDED_CURVE_COLUMNS`, sorted by run (in the order of `runs`)
        and tokens; run_id is a categorical.
    dropped: run_id -> status of the runs that did not finish, or what else kept a run's evaluations out.
    source: where it was read from, for messages.
    pooled: runs on different data were admitted.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    dropped: dict[str, str] = field(default_factory=dict)
    source: str = "table"
    pooled: bool = False

    def spans(self) -> np.ndarray:
        """Rows [runs, 2] of `curves`, from and up to, that belong to each run of `runs`."""
        run = self.curves["run_id"].cat
        code = run.categories.get_indexer(pd.Index(self.runs["run_id"]))
        return np.stack([run.codes.searchsorted(code), run.codes.searchsorted(code, side="right")], axis=1)


def load(path: Path, *, pool: bool = False) -> Table:
    """Read a sweep directory or its runs file (`runs.parquet`, `*.csv`; the curves lie beside it as `curves.*`).

    Raises InputError where a file, a column or a value that every law needs is missing, a loss, size, batch or rate is
    not a positive number, an evaluation occurs twice, or the runs were made on different data and `pool` is false.
    """
    path = Path(path)
    runs_path, curves_path = _files(path)
    runs, curves = _read(runs_path, RUN_COLUMNS), _read(curves_path, NEEDED_CURVE_COLUMNS)
    return make_table(runs, curves, source=str(path), pool=pool)


def make_table(runs: pd.DataFrame, curves: pd.DataFrame, *, source: str = "table", pool: bool = False) -> Table:
    """Check two frames and keep the finished runs. Raises InputError as `load` does."""
    _need(runs, NEEDED_RUN_COLUMNS, f"{source}: the run table")
    _need(curves, NEEDED_CURVE_COLUMNS, f"{source}: the curves")
    runs = _conform(runs, RUN_COLUMNS)
    double = runs["run_id"][runs["run_id"].duplicated()]
    if len(double):
        raise InputError(f"{source}: run {double.iloc[0]} occurs twice in the run table; remove one of the rows")
    done = runs["status"] == "done"
    dropped = dict(zip(runs["run_id"][~done], runs["status"][~done], strict=True))
    listed, runs = set(runs["run_id"]), runs[done].reset_index(drop=True)
    if runs.empty:
        raise InputError(f"{source}: no run is done ({len(dropped)} unfinished or failed); see `isoloss status`")
    _usable_runs(runs, source)
    _one_data_set(runs, source, pool)
    curves, unlisted = _evaluations(curves, runs["run_id"], listed)
    dropped |= dict.fromkeys(unlisted, "not in the run table")
    _usable_curves(curves, source)
    curves = _sorted(curves)
    _no_doubles(curves, source)
    table = Table(runs, curves, dropped, source, pool and runs["data_hash"].nunique() > 1)
    first, past = table.spans().T
    known = (past > first) & (curves["tokens"].to_numpy()[past - 1] > 0 if len(curves) else False)
    if not known.all():
        raise InputError(
            f"{source}: run {runs['run_id'][~known].min()} has no evaluation past its start in the curves; "
            "run `isoloss collect` again"
        )
    return replace(table, runs=_fill_from_curves(runs, curves.iloc[past - 1]))


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


def _read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Those of `columns` that the file has; the run's name once a run where the file repeats it."""
    wanted = set(columns)
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype={"run_id": "string"}, usecols=lambda name: name in wanted)
        present = [name for name in pq.read_schema(path).names if name in wanted]
        table = pq.read_table(path, columns=present, read_dictionary=["run_id"])
        return table.to_pandas(split_blocks=True, self_destruct=True, ignore_metadata=True)
    except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
        raise InputError(f"{path}: unreadable ({str(error).splitlines()[0]}); run `isoloss collect` again") from error


def _evaluations(curves: pd.DataFrame, run_ids: pd.Series, listed: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the runs `run_ids`, and the runs that have rows but are not `listed` in the run table at all."""
    names = curves["run_id"] if isinstance(curves["run_id"].dtype, pd.CategoricalDtype) else curves["run_id"].astype(
        "category"
    )  # fmt: skip
    known = names.cat.categories.astype("string")
    row = names.cat.codes.to_numpy()
    code = np.append(pd.Index(run_ids).get_indexer(known), -1).astype(np.int32)[row]  # -1: no name
    used = code >= 0
    found = np.bincount(row[~used] + 1, minlength=len(known) + 1)[1:] > 0
    if not used.all():
        curves, code = curves[used], code[used]
    data: dict[str, object] = {"run_id": pd.Categorical.from_codes(code, categories=pd.Index(run_ids))}
    for name, dtype in (("step", "Int64"), ("tokens", "float64"), ("test_loss", "float64")):
        data[name] = _cast(curves[name], name, dtype).array
    return pd.DataFrame(data, copy=False), [name for name in known[found] if name not in listed]


def _sorted(curves: pd.DataFrame) -> pd.DataFrame:
    """By run and tokens; most tables are, and sorting 1e7 rows takes seconds."""
    run, tokens = curves["run_id"].cat.codes.to_numpy(), curves["tokens"].to_numpy()
    ordered = (run[1:] > run[:-1]) | ((run[1:] == run[:-1]) & (tokens[1:] >= tokens[:-1]))
    return curves if ordered.all() else curves.iloc[np.lexsort((tokens, run))].reset_index(drop=True)


def _fill_from_curves(runs: pd.DataFrame, last: pd.DataFrame) -> pd.DataFrame:
    """What a table from elsewhere may lack and the last evaluation (one row a run) knows: steps, tokens, test loss, and
    C = 6 N D."""
    filled = {name: runs[name].fillna(pd.Series(last[of].array, index=runs.index))
              for name, of in (("steps", "step"), ("tokens", "tokens"), ("test_loss", "test_loss"))}  # fmt: skip
    flops = runs["flops"].fillna(6 * runs["params"] * filled["tokens"])
    return runs.assign(**filled, flops=flops).astype(RUN_COLUMNS)


def _need(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(f"{what} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _conform(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The schema's columns with its types; absent ones become null."""
    nothing = pd.Series(pd.NA, index=frame.index, dtype="object")
    return pd.DataFrame({name: _cast(frame.get(name, nothing), name, dtype) for name, dtype in columns.items()})


def _cast(values: pd.Series, name: str, dtype: str) -> pd.Series:
    try:
        if dtype == "float64":
            return pd.Series(values.to_numpy(dtype=dtype, na_value=np.nan), copy=False)
        return values.astype(dtype)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise InputError(f"column {name} does not hold {dtype} values ({error})") from error


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
    """Losses are positive, and tokens are not negative."""
    loss, tokens = curves["test_loss"].to_numpy(), curves["tokens"].to_numpy()
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


def _no_doubles(curves: pd.DataFrame, source: str) -> None:
    """No evaluation of the sorted `curves` occurs twice."""
    run, tokens = curves["run_id"].cat.codes.to_numpy(), curves["tokens"].to_numpy()
    double = (run[1:] == run[:-1]) & (tokens[1:] == tokens[:-1])
    if double.any():
        row = curves.iloc[int(np.argmax(double))]
        raise InputError(
            f"{source}: run {row['run_id']} has two evaluations at {row['tokens']:.0f} tokens in the curves "
            f"({int(double.sum())} such row{'s' * (int(double.sum()) > 1)}); run `isoloss collect` again or remove one "
            "of the rows"
        )
