"""The columns that one law takes from a table, as positive numbers; of params, tokens and flops the third by 6ND."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.outcome import Warnings
from analysis.tables.conventions import count
from sweep.schema import InputError

TRIPLE = ("params", "tokens", "flops")
_FALLBACK = {"loss": "test_loss", "run": "run_id"}  # the names in a sweep's own tables


@dataclass(frozen=True)
class Needs:
    """What one law takes from a table. columns: positive numbers that it cannot do without. optional: positive numbers
    it uses where every row has them. labels: columns taken as they are. highest: what `drop_highest` looks at. weights:
    whether it takes any. constant: columns that may be the same in all rows. curves: of a sweep it takes every
    evaluation, not the last."""

    law: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    highest: str | None = "loss"
    weights: bool = True
    constant: tuple[str, ...] = ()
    curves: bool = False


def named(
    table: pd.DataFrame, columns: dict[str, str], needs: Needs, source: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with the law's names beside its own, and where each of them comes from."""
    for target, name in columns.items():
        if name not in table:
            raise InputError(f"{source}: --columns {target}={name}: no column {name}; it has {listed(table)}")
    wanted = (*needs.columns, *needs.optional, *needs.labels)
    for target, name in _FALLBACK.items():
        if target in wanted and target not in table and target not in columns and name in table:
            columns[target] = name
    return table.assign(**{target: table[name] for target, name in columns.items()}), columns


def counted(frame: pd.DataFrame, convention: str, source: str) -> pd.DataFrame:
    """With the params and flops of a convention."""
    if "tokens" not in frame:
        raise InputError(f"{source}: --convention {convention} needs the column tokens, to count FLOPs anew")
    params, per_token = count(frame, convention, source)
    return frame.assign(params=params, flops=per_token * number(frame, "tokens", source))


def numbers(frame: pd.DataFrame, needs: Needs, source: str, warnings: Warnings) -> pd.DataFrame:
    """The law's columns as positive floats, the third of params, tokens and flops filled in."""
    asked = [name for name in needs.columns if name in frame or name not in TRIPLE]
    derived = [name for name in TRIPLE if name not in frame]
    missing = [name for name in asked if name not in frame]
    short = [name for name in derived if name in needs.columns] if len(derived) > 1 else []
    if missing or short:
        rule = " (any two of params, tokens and flops give the third, C = 6ND)" if short else ""
        raise InputError(
            f"{source}: {needs.law} needs the columns {listed(needs.columns)}{rule}; {listed([*short, *missing])} "
            f"{'is' if len([*short, *missing]) == 1 else 'are'} missing. It has {listed(frame)}; name them with "
            f"--columns {[*short, *missing][0]}=NAME"
        )
    if len(derived) == 1 and derived[0] in needs.columns:
        asked += [name for name in TRIPLE if name != derived[0] and name not in asked]
    values = {name: number(frame, name, source) for name in asked}
    for name in (*TRIPLE, *needs.optional):
        if name in frame and name not in values:
            column = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
            if (np.isfinite(column) & (column > 0)).all():
                values[name] = column
            elif name in needs.optional:
                warnings.add("table", "not_used", f"{name} is not used: some rows have no positive number there")
    known = {name: values[name] for name in TRIPLE if name in values}
    if len(known) == 2:
        if "flops" not in known:
            values["flops"] = 6 * known["params"] * known["tokens"]
        else:
            other = next(name for name in ("params", "tokens") if name in known)
            values[{"params": "tokens", "tokens": "params"}[other]] = known["flops"] / (6 * known[other])
    return frame.drop(columns=[n for n in TRIPLE if n in frame and n not in values]).assign(**values)


def number(frame: pd.DataFrame, name: str, source: str) -> np.ndarray:
    """A column of positive numbers [n]."""
    text = frame[name]
    values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    for bad, what in (
        (text.isna().to_numpy(), "missing"),
        (np.isnan(values), "no number"),
        (~np.isfinite(values), "not finite"),
        (values <= 0, "not positive"),
    ):
        if bad.any():
            mend = _mend(frame, name, what)
            raise InputError(f"{source}: {name} is {what} in {bad_rows(frame, bad, name)}; {mend}")
    return values


def _mend(frame: pd.DataFrame, name: str, what: str) -> str:
    """What to do about such rows."""
    if what == "no number":
        return "write plain numbers, such as 1500000 or 1.5e6"
    word = name if name.isidentifier() else f"`{name}`"
    condition = {"not finite": f"{word} < 1e300", "not positive": f"{word} > 0", "missing": f"{word} == {word}"}
    return f'correct them, or leave them out with --where "{condition[what]}"'


def bad_rows(frame: pd.DataFrame, bad: np.ndarray, name: str | None = None) -> str:
    """`3 rows (the first: row 7, -1.5)`."""
    number, first = int(bad.sum()), frame.index[bad][0]
    value = "" if name is None else f", {frame[name][first]}"
    return f"{number} row{'s' * (number != 1)} (the first: row {first}{value})"


def listed(names: Iterable[object]) -> str:
    """`a, b and c`."""
    words = [str(name) for name in names] or [""]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
