"""Rows of a table by an expression such as `loss < 4 and model == "gpt2"`, which can compare but not run code.

The words are those of `pandas.DataFrame.query`: comparisons, and/or/not, arithmetic, `in [..]`, columns by their names
(in backticks where these are no words). Calls, attributes, subscripts and variables of the program are refused before
pandas sees the expression.
"""

from __future__ import annotations

import ast
import re

import numpy as np
import pandas as pd

from sweep.schema import InputError

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.Name, ast.Load, ast.Constant, ast.List,
    ast.Tuple, ast.boolop, ast.unaryop, ast.operator, ast.cmpop,
)  # fmt: skip
_QUOTED = re.compile("`([^`]*)`")


def rows(frame: pd.DataFrame, expression: str) -> np.ndarray:
    """Which rows [n] of `frame` the expression holds for; missing values never do.

    Raises InputError, in one line that names the columns, for a misspelt column, anything but comparisons and
    arithmetic of columns and constants, and an expression that is not true or false for each row.
    """
    problem = _problem(frame, expression)
    if problem:
        columns = ", ".join(str(name) for name in frame.columns)
        raise InputError(
            f'--where {expression}: {problem}; compare columns, as in "loss < 4 and params > 1e6" (columns: {columns})'
        )
    try:
        found = frame.eval(expression, engine="python", parser="pandas", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises many kinds
        raise InputError(f"--where {expression}: {str(error).splitlines()[0]}; give a comparison of columns") from error
    if not (isinstance(found, pd.Series) and pd.api.types.is_bool_dtype(found.dtype)):
        raise InputError(f'--where {expression}: not true or false for each row; give a comparison such as "loss < 4"')
    return found.fillna(False).to_numpy(dtype=bool)


def _problem(frame: pd.DataFrame, expression: str) -> str | None:
    """Why the expression is not evaluated, if it is not."""
    quoted: list[str] = []

    def name(match: re.Match[str]) -> str:
        quoted.append(match[1])
        return f"quoted_{len(quoted) - 1}"

    try:
        tree = ast.parse(_QUOTED.sub(name, expression).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "use == to compare" if re.search(r"[^=<>!]=[^=]", expression) else "not an expression"
    columns = {str(column) for column in frame.columns}
    known = columns | {"True", "False"} | {f"quoted_{i}" for i, column in enumerate(quoted) if column in columns}
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            return f"{type(node).__name__.lower()} is not allowed"
        if isinstance(node, ast.Name) and node.id not in known:
            word = next((c for i, c in enumerate(quoted) if node.id == f"quoted_{i}"), node.id)
            return f"there is no column {word}"
    return None
