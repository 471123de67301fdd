"""--where: what it selects, and that it runs no code."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.tables import where
from sweep.schema import InputError

FRAME = pd.DataFrame({"loss": [2.0, 3, 4, None], "model": ["a", "b", "a", "a"], "final loss": [1.0, 2, 3, 4]})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("loss < 3.5", [True, True, False, False]),
        ("2 < loss <= 4", [False, True, True, False]),
        ('loss < 3.5 and model == "a"', [True, False, False, False]),
        ("loss < 3.5 & model == 'a'", [True, False, False, False]),
        ("not (model in ['b', 'c'])", [True, False, True, True]),
        ("loss == loss", [True, True, True, False]),
        ("`final loss` > loss / 2 + 0.1", [False, True, True, False]),
        ("model != 'a' or loss > 3", [False, True, True, False]),
    ],
)
def test_rows(expression: str, expected: list[bool]) -> None:
    assert where.rows(FRAME, expression).tolist() == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os').remove('x')", "call is not allowed"),
        ("loss.max() > 3", "call is not allowed"),
        ("model.str == 3", "attribute is not allowed"),
        ("loss[0] > 3", "subscript is not allowed"),
        ("[x for x in model] == 3", "listcomp is not allowed"),
        ("(lambda: 3) == loss", "lambda is not allowed"),
        ("(loss := 3) > 2", "namedexpr is not allowed"),
        ("@FRAME > 3", "not an expression"),
        ("FRAME > 3", "there is no column FRAME"),
        ("los > 3", "there is no column los"),
        ("`final los` > 3", "there is no column final los"),
        ("loss = 3", "use == to compare"),
        ("", "not an expression"),
        ("loss + 1", "not true or false for each row"),
        ("True", "not true or false for each row"),
        ("model < 3", "give a comparison of columns"),
    ],
)
def test_anything_else_is_refused(expression: str, message: str) -> None:
    with pytest.raises(InputError, match="--where") as caught:
        where.rows(FRAME, expression)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "column" in message and "no column" in message:
        assert "loss, model, final loss" in str(caught.value)
