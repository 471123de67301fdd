"""Grids: blocks of a configuration expanded into cells, and the `where` filter over what a cell resolves to.

A block is the product of its `product` (every combination), its `zip` (keys in step) and its `cells` (explicit ones),
on top of what it `set`s; `where` keeps the cells for which it holds. Keys are dotted configuration keys. Runs of blocks
of a lower `priority` start first; a run of several blocks has the lowest of theirs.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweep.config import RUN_KEYS, Block, cleared, flatten
from sweep.schema import InputError
from sweep.spec import suggest

WHERE_NAMES = ("params", "tokens", "flops", "batch_tokens", "steps", "n_layer", "d_model", "lr", "seed")

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** b,  # as floats: an integer power could grow without bound
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


def expand(name: str, block: Block) -> Iterator[dict[str, Any]]:
    """The cells of block `name` in a fixed order: what each changes in the configuration, with dotted keys.

    A named key sets its alternatives (another way to state the horizon, the shape, ...) to null. Raises InputError
    for unknown keys, values that are not lists and zipped lists of unequal length.
    """
    where = f"grid.blocks.{name}"
    base = _known(flatten(block.set), f"{where}.set")
    product = _lists(block.product, f"{where}.product")
    zipped = _lists(block.zip, f"{where}.zip")
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{where}.zip needs lists of one length, but has {lengths}")
    rows = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
    cells = [_known(flatten(cell), f"{where}.cells") for cell in block.cells] or [{}]
    for cell, row, combination in itertools.product(cells, rows, itertools.product(*product.values())):
        varied = {**cell, **row, **dict(zip(product, combination, strict=True))}
        yield {**cleared(base), **base, **cleared(varied), **varied}


def compile_where(expression: str, where: str) -> Callable[[Mapping[str, float]], bool]:
    """A filter from an expression over `WHERE_NAMES`: numbers, arithmetic, comparisons, and, or, not.

    Nothing else is evaluated; anything else raises InputError.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
        _check(tree, where)
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{where} is not an expression: {expression[:80]!r}") from error

    def keep(values: Mapping[str, float]) -> bool:
        try:
            return bool(_evaluate(tree, values))
        except (ArithmeticError, TypeError, RecursionError) as error:
            raise InputError(f"{where} cannot be evaluated: {error}") from error

    return keep


def _check(node: ast.AST, where: str) -> None:
    match node:
        case ast.BoolOp(values=parts):
            children: list[ast.AST] = [*parts]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            children = [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            children = [operand]
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _BINARY for op in ops):
            children = [left, *rest]
        case ast.Constant(value=int() | float()):
            children = []
        case ast.Name(id=name):
            if name not in WHERE_NAMES:
                raise InputError(f"{where}: unknown name {name}{suggest(name, WHERE_NAMES)}")
            children = []
        case _:
            raise InputError(
                f"{where} may hold numbers, arithmetic, comparisons, and/or/not, not {ast.unparse(node)!r}"
            )
    for child in children:
        _check(child, where)


def _evaluate(node: ast.AST, values: Mapping[str, float]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_evaluate(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_evaluate(part, values) for part in parts)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, values))
        case ast.Compare(left=left, ops=ops, comparators=rest):
            sides = [_evaluate(side, values) for side in (left, *rest)]
            return all(_BINARY[type(op)](a, b) for op, a, b in zip(ops, sides[:-1], sides[1:], strict=True))
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values[name]
    raise AssertionError(f"unchecked node {node!r}")


def _known(keys: dict[str, Any], where: str) -> dict[str, Any]:
    for key in keys:
        if key not in RUN_KEYS:
            raise InputError(f"{where}: unknown key {key}{suggest(key, RUN_KEYS)}")
    return keys


def _lists(values: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    flat = _known(flatten(values), where)
    for key, items in flat.items():
        if not isinstance(items, list | tuple) or not items:
            raise InputError(f"{where}.{key} must be a list of values, not {items!r}")
    return flat
