"""Tables of points from disk: CSV or Parquet from anybody, or the two tables of a sweep."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sweep.schema import CURVES_TABLE, RUNS_TABLE, InputError

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".parquet": None, ".pq": None}


def read(path: Path, *, curves: bool = False) -> pd.DataFrame:
    """The table at `path`: CSV or tab-separated, also compressed, or Parquet. Of a sweep directory the runs as they
    ended, or with `curves` every evaluation.

    Raises InputError for a file that is not there, of another kind, damaged or without rows.
    """
    if path.is_dir():
        return _read_sweep(path, curves)
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory")
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _PACKED]
    kind = suffixes[-1] if suffixes else ""
    if kind not in _SEPARATORS:
        raise InputError(f"{path}: cannot read {kind or 'a file without a suffix'}; give CSV or Parquet")
    separator = _SEPARATORS[kind]
    try:
        frame = pd.read_parquet(path) if separator is None else pd.read_csv(path, sep=separator, skipinitialspace=True)
    except Exception as error:  # pyarrow and pandas raise many kinds for a damaged file
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: unreadable ({text}); give CSV or Parquet with one header line") from error
    if separator is not None and not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas made the first its index
        raise InputError(f"{path}: its rows have more fields than its header has names; name every column")
    names = pd.Series(frame.columns if separator is None else _header(path, separator), dtype=object).dropna()
    names = names.astype(str).str.strip()
    if names.duplicated().any():
        twice = ", ".join(names[names.duplicated()].unique())
        raise InputError(f"{path}: several columns are called {twice}; give each a name of its own")
    frame.columns = [str(name).strip() for name in frame.columns]
    if frame.empty:
        raise InputError(f"{path}: the table has no rows")
    return frame


def _header(path: Path, separator: str) -> list[object]:
    """The names as they stand in the file, where pandas would number those that occur twice."""
    return list(pd.read_csv(path, sep=separator, skipinitialspace=True, header=None, nrows=1, dtype=str).iloc[0])


def _read_sweep(path: Path, curves: bool) -> pd.DataFrame:
    for name in (RUNS_TABLE, CURVES_TABLE):
        if not (path / name).is_file():
            raise InputError(f"{path}: no {name} here; run `isoloss collect {path}` first")
    runs = pd.read_parquet(path / RUNS_TABLE)
    if not curves:
        return runs
    points = pd.read_parquet(path / CURVES_TABLE, columns=["run_id", "tokens", "test_loss"])
    return points.merge(runs.drop(columns=["tokens", "test_loss", "flops"]), on="run_id")
