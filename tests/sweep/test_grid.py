"""Expansion of blocks into cells, and the filter language."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.config import Block
from sweep.grid import compile_where, expand
from sweep.schema import InputError


def cells(**block: Any) -> list[dict[str, Any]]:
    """Cells of a block, without the keys that a cell sets to null."""
    return [{k: v for k, v in cell.items() if v is not None} for cell in expand("b", Block(**block))]


def test_an_empty_block_is_the_configuration_itself() -> None:
    assert cells() == [{}]


def test_product_varies_its_last_key_fastest() -> None:
    found = cells(product={"batch_tokens": [128, 256], "seed": [0, 1]})
    assert [(cell["batch_tokens"], cell["seed"]) for cell in found] == [(128, 0), (128, 1), (256, 0), (256, 1)]


def test_zip_product_cells_and_set_combine() -> None:
    found = cells(
        cells=({"model.shape": "2x16"}, {"model.shape": "2x32", "weight_average": 0.2}),
        zip={"batch_tokens": [128, 256], "optimizer.lr": [1e-3, 2e-3]},
        product={"seed": [0, 1, 2]},
        set={"weight_average": 0.1, "horizon.tokens": 1e6},
    )
    assert len(found) == 2 * 2 * 3
    assert {(c["batch_tokens"], c["optimizer.lr"]) for c in found} == {(128, 1e-3), (256, 2e-3)}
    assert {(c["model.shape"], c["weight_average"]) for c in found} == {("2x16", 0.1), ("2x32", 0.2)}
    assert all(c["horizon.tokens"] == 1e6 for c in found)


def test_nested_keys_mean_dotted_ones() -> None:
    assert cells(product={"model": {"shape": ["2x16"]}}, set={"horizon": {"steps": 5}}) == [
        {"model.shape": "2x16", "horizon.steps": 5}
    ]


def test_a_named_key_clears_its_alternatives_and_axes_win_over_set() -> None:
    (cell,) = expand("b", Block(product={"horizon.steps": [10]}, set={"horizon.tokens": 1e6, "model.shape": "2x16"}))
    assert cell["horizon.steps"] == 10
    assert cell["horizon.tokens"] is None
    assert cell["horizon.flops"] is None
    assert cell["model.n_layer"] is None
    assert cell["model.shape"] == "2x16"
    (both,) = expand("b", Block(cells=({"model.n_head": 22, "model.d_head": 128},)))
    assert (both["model.n_head"], both["model.d_head"]) == (22, 128)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (
            {"product": {"batch_token": [1]}},
            r"grid.blocks.b.product: unknown key batch_token; did you mean batch_tokens",
        ),
        ({"product": {"seed": 3}}, r"grid.blocks.b.product.seed must be a list"),
        ({"product": {"seed": []}}, "must be a list of values"),
        ({"zip": {"seed": [1, 2], "batch_tokens": [128]}}, "one length"),
        ({"cells": ({"modle.shape": "2x16"},)}, "did you mean model.shape"),
        ({"set": {"data.name": "x"}}, "unknown key data.name"),
    ],
)
def test_mistakes_are_named(block: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cells(**block)


VALUES = {"params": 1e4, "tokens": 1e6, "flops": 6e10, "batch_tokens": 256.0, "steps": 40.0, "n_layer": 2.0,
          "d_model": 32.0, "lr": 1e-3, "seed": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("tokens * params < 1e11", True),
        ("tokens / params >= 100 and lr < 2e-3", True),
        ("seed == 0 or steps > 100", True),
        ("not (1 < n_layer <= 2)", False),
        ("-d_model + 32 == 0 and 2 ** 3 == 8 and 7 // 2 == 3 and 7 % 2 == 1", True),
        ("flops != 6 * params * tokens", False),
    ],
)
def test_where(expression: str, expected: bool) -> None:
    assert compile_where(expression, "where")(VALUES) is expected


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("token < 1", "unknown name token; did you mean tokens"),
        ("tokens <", "not an expression"),
        ("__import__('os').system('true')", "may hold numbers"),
        ("tokens.real > 1", "may hold numbers"),
        ("[1 for x in (1,)]", "may hold numbers"),
        ("'a' * 9", "may hold numbers"),
        ("seed in (0, 1)", "may hold numbers"),
        ("(lambda: 1)()", "may hold numbers"),
        ("1 << 9999999", "may hold numbers"),
        ("-" * 99_999 + "1", "not an expression"),
        ("not " * 9_000 + "seed", "not an expression"),
    ],
)
def test_where_evaluates_nothing_but_arithmetic(expression: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        compile_where(expression, "where")


@pytest.mark.parametrize("expression", ["1 / seed > 2", "9.0 ** 9999 > 1"])
def test_where_says_when_it_cannot_be_evaluated(expression: str) -> None:
    with pytest.raises(InputError, match="cannot be evaluated"):
        compile_where(expression, "grid.blocks.b.where")(VALUES)
