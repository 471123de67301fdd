"""Anybody's tables: names, formats, 6ND, exclusions that are counted, input that is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.tables.points import Needs, load, prepare
from sweep.schema import InputError

PARAMETRIC = Needs("parametric", ("params", "tokens", "loss"), labels=("run",))
ISOFLOP = Needs("isoflop", ("params", "flops", "loss"), optional=("tokens",), constant=("flops",))


def table(rows: int = 12) -> pd.DataFrame:
    """Plausible runs of one law."""
    params = np.repeat(np.geomspace(1e7, 1e9, 4), rows // 4)
    tokens = params * np.tile(np.geomspace(5, 80, rows // 4), 4)
    loss = 1.8 + 480 / params**0.35 + 2100 / tokens**0.37
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss, "seed": range(rows)})


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet", "t.CSV.bz2"])
def test_formats(name: str, tmp_path: Path) -> None:
    path, frame = tmp_path / name, table()
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        kind = {"gz": "gzip", "bz2": "bz2"}.get(name.split(".")[-1])
        frame.to_csv(path, index=False, sep="\t" if name == "t.tsv" else ",", compression=kind)  # type: ignore[call-overload]
    found = load(path, PARAMETRIC)
    np.testing.assert_allclose(found.frame["loss"], frame["loss"], rtol=1e-12)
    np.testing.assert_allclose(found.frame["flops"], 6 * frame["params"] * frame["tokens"])
    assert not found.exclusions
    assert not found.warnings


@pytest.mark.parametrize("absent", ["params", "tokens", "flops"])
def test_the_third_follows_by_6nd(absent: str) -> None:
    frame = table().assign(flops=lambda f: 6 * f["params"] * f["tokens"])
    found = prepare(frame.drop(columns=absent), PARAMETRIC)
    np.testing.assert_allclose(found.frame[absent], frame[absent])


def test_names_of_the_table_and_of_a_sweep() -> None:
    frame = table().rename(columns={"params": "N", "tokens": "D", "loss": "final loss"})
    found = prepare(frame, PARAMETRIC, columns={"params": "N", "tokens": "D", "loss": "final loss"}, where="N > 2e7")
    assert len(found.frame) == 9
    sweep = table().rename(columns={"loss": "test_loss"}).assign(run_id="a")
    assert prepare(sweep, PARAMETRIC).frame["run"].tolist() == ["a"] * 12


def test_every_exclusion_is_counted() -> None:
    frame = table().assign(status="done", w=1.0, model=["a", "b"] * 6)
    frame.loc[0, "status"], frame.loc[1, "status"], frame.loc[2, "model"], frame.loc[3, "w"] = (
        "failed",
        "diverged",
        None,
        0,
    )
    found = prepare(frame, PARAMETRIC, where="seed < 11", by="model", drop_highest=1, weights="w")
    assert found.exclusions == [
        {"reason": "status failed", "count": 1},
        {"reason": "status diverged", "count": 1},
        {"reason": "outside --where seed < 11", "count": 1},
        {"reason": "without a value of model", "count": 1},
        {"reason": "of weight 0 in w", "count": 1},
        {"reason": "with the highest loss of their model (--drop-highest 1)", "count": 2},
    ]
    assert len(found.frame) + sum(item["count"] for item in found.exclusions) == len(frame)
    groups = dict(found.groups())
    assert {label: len(rows) for label, rows in groups.items()} == {"a": 3, "b": 2}
    for label, rows in groups.items():  # the highest of each group, not of all
        own = frame[(frame["model"] == label) & (frame["status"] == "done") & (frame["w"] > 0) & (frame["seed"] < 11)]
        assert rows["loss"].max() == own["loss"].sort_values().iloc[-2]


def test_conventions_count_anew() -> None:
    frame = table().assign(params_total=lambda f: 2 * f["params"])
    found = prepare(frame, ISOFLOP, convention="total")
    np.testing.assert_allclose(found.frame["params"], 2 * frame["params"])
    np.testing.assert_allclose(found.frame["flops"], 12 * frame["params"] * frame["tokens"])
    with pytest.raises(InputError, match="params_attention"):
        prepare(frame, ISOFLOP, convention="with_head")


def test_optional_columns_with_gaps_are_not_used_and_that_is_said() -> None:
    needs = Needs("frontier", ("params", "tokens", "loss"), optional=("batch_tokens",), weights=False)
    found = prepare(table().assign(batch_tokens=[np.nan] + [512.0] * 11, weight=1.0), needs)
    assert [w["message"] for w in found.warnings] == [
        "batch_tokens is not used: some rows have no positive number there",
        "frontier takes no weights: the column weight is not used",
    ]


def change(column: str, row: int, value: object) -> pd.DataFrame:
    frame = table().astype({column: object})
    frame.loc[row, column] = value
    return frame


BAD: dict[str, tuple[pd.DataFrame, dict[str, Any], str]] = {
    "nan": (change("loss", 3, np.nan), {}, r"loss is missing in 1 row \(the first: row 4, nan\).*\"loss == loss\""),
    "negative": (change("loss", 0, -1.0), {}, r"loss is not positive in 1 row \(the first: row 1, -1.0\).*loss > 0"),
    "zero": (change("tokens", 0, 0), {}, "tokens is not positive"),
    "infinite": (change("loss", 2, np.inf), {}, "loss is not finite"),
    "text": (change("params", 2, "1,000"), {}, r"params is no number .*1,000.*plain numbers"),
    "duplicated": (pd.concat([table(), table()[:2]]), {}, r"duplicated in every column: 2 rows \(the first: row 13\)"),
    "one size": (table().assign(params=1e7), {}, "params is 1e\\+07 in all rows; parametric needs different values"),
    "one loss": (table().assign(loss=3.0), {}, "loss is 3 in all rows"),
    "no loss": (table().drop(columns="loss"), {}, r"loss is missing\. It has params, tokens and seed.*--columns loss="),
    "one of three": (table().drop(columns="tokens"), {}, "any two of params, tokens and flops give the third"),
    "derived from a gap": (
        change("tokens", 1, np.nan).rename(columns={"tokens": "flops"}), {}, "flops is missing in 1 row",
    ),
    "no column": (table(), {"columns": {"params": "N"}}, "no column N; it has params"),
    "by": (table(), {"by": "model"}, "--by model: no such column"),
    "weights": (table(), {"weights": "w"}, "--weights w: no such column"),
    "negative weight": (table().assign(weight=[-1.0] + [1] * 11), {}, "weight is no weight in 1 row"),
    "no weight": (table().assign(weight=0), {}, "all weights in weight are 0"),
    "nothing left": (table(), {"where": "loss < 1"}, r"no row is left \(12 outside --where loss < 1\)"),
    "all dropped": (table(), {"drop_highest": 12}, "leaves none of the 12 rows"),
    "unknown convention": (table(), {"convention": "mine"}, "convention 'mine' is not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unusable_tables_are_refused_in_one_line(name: str) -> None:
    frame, options, message = BAD[name]
    with pytest.raises(InputError) as caught:
        prepare(frame, PARAMETRIC, "t.csv", **options)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file"),
        ("t.xlsx", "x", r"cannot read .xlsx; give CSV or Parquet"),
        ("t.csv", "", "unreadable"),
        ("t.csv", "loss,params\n", "has no rows"),
        ("t.parquet", "not parquet", "unreadable"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / name, PARAMETRIC)
    assert "\n" not in str(caught.value)


def test_a_directory_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="isoloss collect"):
        load(tmp_path, PARAMETRIC)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params,tokens,loss,loss\n1,2,3,4\n", "several columns are called loss"),
        ("params,tokens,loss\n1,2,3,4\n5,6,7,8\n", "more fields than its header"),
    ],
)
def test_columns_without_a_name_of_their_own_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        load(tmp_path / "t.csv", PARAMETRIC)
