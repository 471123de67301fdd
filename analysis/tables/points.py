"""A table of points from anybody: CSV or Parquet with columns such as params, tokens and loss, checked for one law.

    from analysis.tables.points import Needs, load
    points = load(Path("runs.csv"), Needs("parametric", ("params", "tokens", "loss")), columns={"params": "N"})
    points.frame["loss"], points.exclusions, points.warnings

Of params, tokens and flops the third follows by C = 6ND. A row that cannot be used is refused, with the way to leave it
out; a row that is left out is counted with its reason; what looks wrong but may be right is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.outcome import Warnings
from analysis.tables import where as where_
from analysis.tables.columns import TRIPLE, Needs, bad_rows, counted, listed, named, numbers
from analysis.tables.files import read
from analysis.tables.suspicions import suspect
from sweep.schema import STATUSES, InputError

WEIGHT = "weight"


@dataclass(frozen=True)
class Points:
    """Rows that a law may be fitted to. frame: the columns of `Needs`, `weight` where there is one, and all others of
    the table. exclusions: items {"reason", "count"}. by: the column of the groups."""

    source: str
    frame: pd.DataFrame
    exclusions: list[dict[str, Any]] = field(default_factory=list)
    warnings: Warnings = field(default_factory=Warnings)
    by: str | None = None

    def groups(self) -> Iterator[tuple[Any, pd.DataFrame]]:
        """(label, rows) of each group in the table's order; one with the label None without `by`."""
        if self.by is None:
            yield None, self.frame
            return
        yield from self.frame.groupby(self.by, sort=False)


def load(
    path: Path,
    needs: Needs,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    by: str | None = None,
    drop_highest: int = 0,
    weights: str | None = None,
    convention: str | None = None,
) -> Points:
    """Read `path` and make it ready for one law.

    columns: the table's own names of the columns that a law calls otherwise ({"params": "N"}). where: an expression
    that rows must fulfil (`analysis.tables.where`). by: column of labels, one fit each. drop_highest: leave out so many
    rows of the highest loss in every group. weights: column of weights (default: `weight` where there is one).
    convention: count N and C so (`analysis.tables.conventions`), from the components in the table and its tokens.

    Raises InputError, in one line, for a file that cannot be read, a missing column, values that are not positive
    numbers, duplicated rows, a column that is the same in all rows, and exclusions that leave nothing.
    """
    return prepare(read(Path(path), curves=needs.curves), needs, str(path), columns=columns, where=where, by=by,
                   drop_highest=drop_highest, weights=weights, convention=convention)  # fmt: skip


def prepare(
    table: pd.DataFrame,
    needs: Needs,
    source: str = "table",
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    by: str | None = None,
    drop_highest: int = 0,
    weights: str | None = None,
    convention: str | None = None,
) -> Points:
    """What `load` does, from a frame."""
    found = Points(source, table, by=by)
    own, sources = named(table, dict(columns or {}), needs, source)
    frame = own.set_axis(np.arange(1, len(own) + 1))  # rows are named from 1, as people count
    for name, what in ((by, "--by"), (weights, "--weights")):
        if name is not None and name not in frame:
            raise InputError(f"{source}: {what} {name}: no such column; it has {listed(frame)}")
    if "status" in frame and frame["status"].isin(STATUSES).all():
        for status in frame["status"].unique():
            if status != "done":
                frame = _leave(frame, frame["status"] == status, f"status {status}", found)
    if where is not None:
        frame = _leave(frame, ~where_.rows(frame, where), f"outside --where {where}", found)
    if needs.curves and "tokens" in frame:
        frame = _leave(frame, (frame["tokens"] == 0).fillna(False), "evaluated before training", found)
    if by is not None:
        frame = _leave(frame, frame[by].isna(), f"without a value of {by}", found)
    if frame.empty:
        raise InputError(f"{source}: no row is left{_because(found)}")
    if convention is not None:
        frame = counted(frame, convention, source)
    frame = numbers(frame, needs, source, found.warnings)
    frame = _weighted(frame, needs, weights, source, found)
    _refuse_duplicates(frame, list(table.columns), source)
    frame = _drop_highest(frame, needs, drop_highest, by, source, found)
    _refuse_constants(frame, needs, by, source)
    used = [name for name in TRIPLE if name in needs.columns]
    counts = used and convention is None  # otherwise flops has nothing to agree with
    suspect(frame if counts else frame.drop(columns="flops", errors="ignore"), sources, listed(used), found.warnings)
    return Points(source, frame, found.exclusions, found.warnings, by)


def _leave(frame: pd.DataFrame, out: pd.Series | np.ndarray, reason: str, found: Points) -> pd.DataFrame:
    """Without the rows `out`, which are counted."""
    number = int(np.sum(out))
    if number:
        found.exclusions.append({"reason": reason, "count": number})
    return frame[~np.asarray(out, dtype=bool)]


def _because(found: Points) -> str:
    text = "; ".join(f"{item['count']} {item['reason']}" for item in found.exclusions)
    return f" ({text})" if text else ""


def _weighted(frame: pd.DataFrame, needs: Needs, column: str | None, source: str, found: Points) -> pd.DataFrame:
    if not needs.weights:
        if WEIGHT in frame:
            found.warnings.add("table", "not_used", f"{needs.law} takes no weights: the column {WEIGHT} is not used")
        return frame.drop(columns=WEIGHT, errors="ignore")
    if column is None and WEIGHT not in frame:
        return frame
    name = column or WEIGHT
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise InputError(
            f"{source}: {name} is no weight in {bad_rows(frame, bad, name)}; weights are numbers, at least 0"
        )
    if not values.any():
        raise InputError(f"{source}: all weights in {name} are 0; give at least some rows a weight")
    return _leave(frame.assign(**{WEIGHT: values}), values == 0, f"of weight 0 in {name}", found)


def _refuse_duplicates(frame: pd.DataFrame, columns: list[str], source: str) -> None:
    """Rows equal in every column of the table: a file written twice, or repeats without a seed to tell them apart."""
    double = frame.duplicated(subset=[c for c in columns if c in frame])
    if double.any():
        raise InputError(
            f"{source}: duplicated in every column: {bad_rows(frame, double.to_numpy())}; remove such rows, or add a "
            "column that tells repeats apart, such as seed"
        )


def _drop_highest(
    frame: pd.DataFrame, needs: Needs, number: int, by: str | None, source: str, found: Points
) -> pd.DataFrame:
    if not number:
        return frame
    if needs.highest is None:
        raise InputError(f"{needs.law}: there is no loss of which to drop the highest; use --where")
    groups = frame[needs.highest].groupby(frame[by], sort=False) if by else [(None, frame[needs.highest])]
    out = [row for _, values in groups for row in values.sort_values(kind="stable").index[-number:]]
    if len(out) == len(frame):
        raise InputError(f"{source}: --drop-highest {number} leaves none of the {len(frame)} rows")
    reason = f"with the highest {needs.highest}{f' of their {by}' if by else ''} (--drop-highest {number})"
    return _leave(frame, frame.index.isin(out), reason, found)


def _refuse_constants(frame: pd.DataFrame, needs: Needs, by: str | None, source: str) -> None:
    """A law over a quantity needs at least two values of it."""
    groups = frame.groupby(by, sort=False) if by else [(None, frame)]
    for label, rows in groups:
        where = f" of {by} {label!s}" if by else ""
        for name in needs.columns:
            if rows[name].nunique() == 1 and name not in needs.constant:
                raise InputError(
                    f"{source}: {name} is {rows[name].iloc[0]:g} in {'the one row' if len(rows) == 1 else 'all rows'}"
                    f"{where}; {needs.law} needs different values of it"
                )
