"""Reading and checking the run table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.tables.table import NEEDED_CURVE_COLUMNS, NEEDED_RUN_COLUMNS, load, make_table
from analysis.uncertainty.simulate import synthetic_sweep
from sweep.schema import CURVES_TABLE, RUNS_TABLE, InputError


@pytest.fixture
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    table = synthetic_sweep(cells={(2, 16): (8, 16)}, tokens=2e5, seeds={})
    return table.runs.copy(), table.curves.copy()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_sweep_directory_or_file_reads_back_as_it_was(
    tmp_path: Path, frames: tuple[pd.DataFrame, pd.DataFrame], kind: str
) -> None:
    runs, curves = frames
    if kind == "parquet":
        runs.to_parquet(tmp_path / RUNS_TABLE)
        curves.to_parquet(tmp_path / CURVES_TABLE)
        table = load(tmp_path)
        pd.testing.assert_frame_equal(load(tmp_path / RUNS_TABLE).runs, table.runs)
    else:
        runs.to_csv(tmp_path / "my_runs.csv", index=False)
        curves.to_csv(tmp_path / "my_curves.csv", index=False)
        table = load(tmp_path / "my_runs.csv")
    pd.testing.assert_frame_equal(table.runs, runs)
    pd.testing.assert_frame_equal(table.curves.sort_values(["run_id", "step"]), curves.sort_values(["run_id", "step"]))


def test_only_done_runs_count_and_the_others_are_named(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    runs.loc[0, "status"] = "diverged"
    table = make_table(runs, curves)
    assert table.dropped == {runs.loc[0, "run_id"]: "diverged"}
    assert set(table.curves["run_id"]) == set(table.runs["run_id"]) == {runs.loc[1, "run_id"]}
    runs["status"] = "failed"
    with pytest.raises(InputError, match="no run is done"):
        make_table(runs, curves)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_loss_that_is_no_positive_number_is_refused_by_name(
    frames: tuple[pd.DataFrame, pd.DataFrame], value: float
) -> None:
    runs, curves = frames
    curves.loc[3, "test_loss"] = value
    with pytest.raises(InputError, match=f"run {curves.loc[3, 'run_id']} at step {curves.loc[3, 'step']}"):
        make_table(runs, curves)


def test_different_data_are_pooled_only_when_asked(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    runs.loc[0, "data_hash"] = "other"
    with pytest.raises(InputError, match="different data"):
        make_table(runs, curves)
    assert make_table(runs, curves, pool=True).pooled


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    with pytest.raises(InputError, match="lacks the columns params, lr"):
        make_table(runs.drop(columns=["params", "lr"]), curves)
    with pytest.raises(InputError, match="the curves lacks the column test_loss"):
        make_table(runs, curves.drop(columns="test_loss"))
    with pytest.raises(InputError, match="has no evaluation"):
        make_table(runs, curves[curves["run_id"] != runs.loc[0, "run_id"]])
    with pytest.raises(InputError, match="occurs twice"):
        make_table(pd.concat([runs, runs]), curves)
    with pytest.raises(InputError, match="does not hold Int64"):
        make_table(runs.assign(batch_tokens="many"), curves)
    with pytest.raises(InputError, match="run `isoloss collect"):
        load(tmp_path)
    (tmp_path / RUNS_TABLE).write_bytes(b"PAR1 cut off")
    curves.to_parquet(tmp_path / CURVES_TABLE)
    with pytest.raises(InputError, match="unreadable") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [("params", 0), ("params", pd.NA), ("batch_tokens", -5), ("lr", pd.NA), ("lr", 0.0), ("seed", pd.NA),
     ("schedule", pd.NA)],
)  # fmt: skip
def test_a_run_without_what_every_law_needs_is_refused_by_name(
    frames: tuple[pd.DataFrame, pd.DataFrame], column: str, value: object
) -> None:
    runs, curves = frames
    runs.loc[1, column] = value
    with pytest.raises(InputError, match=f"{column} of run {runs.loc[1, 'run_id']} is ") as caught:
        make_table(runs, curves)
    assert "\n" not in str(caught.value)
    make_table(runs.assign(status=["done", "diverged"]), curves)  # a run that is not used may lack it


def test_evaluations_without_tokens_or_given_twice_are_refused(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    for value in (-3.0, pd.NA):
        bad = curves.copy()
        bad.loc[3, "tokens"] = value
        with pytest.raises(InputError, match=r"tokens .* is not a number of tokens"):
            make_table(runs, bad)
    with pytest.raises(InputError, match="two evaluations at"):
        make_table(runs, pd.concat([curves, curves.iloc[3:5]]))
    start = curves.groupby("run_id").head(1).assign(step=0, tokens=0.0)
    with pytest.raises(InputError, match="no evaluation past its start"):
        make_table(runs, start)
    assert len(make_table(runs, pd.concat([start, curves])).curves) == len(curves) + 2


def test_a_table_in_any_order_is_sorted_and_each_run_knows_its_rows(
    frames: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    runs, curves = frames
    mixed = curves.assign(run_id=curves["run_id"].astype("string")).sample(frac=1, random_state=0)
    table = make_table(runs[::-1], mixed)
    for run_id, (first, past) in zip(table.runs["run_id"], table.spans(), strict=True):
        own = table.curves.iloc[first:past]
        assert set(own["run_id"]) == {run_id}
        assert own["tokens"].tolist() == curves.loc[curves["run_id"] == run_id, "tokens"].tolist()
    assert list(table.runs["run_id"]) == list(runs["run_id"])[::-1]


def test_evaluations_of_runs_that_the_run_table_lacks_are_counted(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    first, second = runs["run_id"]
    assert make_table(runs[:1], curves).dropped == {second: "not in the run table"}
    runs.loc[0, "status"] = "failed"
    assert make_table(runs, curves).dropped == {first: "failed"}


def test_names_that_are_numbers_are_names(tmp_path: Path, frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    runs, curves = frames
    numbers = dict(zip(runs["run_id"], (7, 5), strict=True))
    runs.assign(run_id=runs["run_id"].map(numbers)).to_parquet(tmp_path / RUNS_TABLE)
    curves.assign(run_id=curves["run_id"].map(numbers).astype(int)).to_parquet(tmp_path / CURVES_TABLE)
    table = load(tmp_path)
    assert list(table.runs["run_id"]) == ["7", "5"]
    assert table.curves["test_loss"].tolist() == curves["test_loss"].tolist()


def test_a_table_of_the_needed_columns_alone_is_filled_from_its_curves(
    frames: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    runs, curves = frames
    found = make_table(runs[list(NEEDED_RUN_COLUMNS)], curves[list(NEEDED_CURVE_COLUMNS)]).runs
    for name in ("steps", "tokens", "flops", "test_loss"):
        pd.testing.assert_series_equal(found[name], runs[name])
    assert found["n_layer"].isna().all()
