"""Influence: the batched refits are refits, and the runs that move an exponent are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import parametric, power_law
from analysis.outcome import Estimate, Outcome
from analysis.uncertainty.holdout import predicted
from analysis.uncertainty.influence import influence, one_by_one, parametric_refit
from sweep.schema import InputError

POINTS = Path(__file__).parents[4] / "shared" / "data" / "chinchilla_points.csv"
START = np.array([[6.0, 0.35, 7.5, 0.37, 0.6]])
TRUE = {"A": 480.0, "B": 2000.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 1e10, 6), np.geomspace(2e9, 3e11, 6)))
LOSS = predicted("parametric", TRUE, {"params": N, "tokens": D})
LOSS = LOSS * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))


def constants(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> dict[str, Estimate]:
    theta = parametric.fit_parametric(params, tokens, loss, from_starts=START).parameters
    return {name: Estimate(float(v[0])) for name, v in parametric.constants(theta).items()}


def test_without_a_run_is_the_fit_without_it() -> None:
    law = constants(N, D, LOSS)
    run = np.arange(len(N)) // 2  # two points a run
    found = influence(parametric_refit(N, D, LOSS, law), run, law["a"], quantities={"params": N})
    assert len(found.runs) == 18
    assert found.runs["points"].eq(2).all()
    for row in found.runs.iloc[[0, 7, 17]].to_dict("records"):
        keep = run != int(row["run"].removeprefix("row "))
        assert row["without"] == pytest.approx(constants(N[keep], D[keep], LOSS[keep])["a"].value, abs=1e-7)
        assert row["shift"] == pytest.approx(row["without"] - law["a"].value)
    assert found.runs["shift"].abs().is_monotonic_decreasing
    assert found.se_source == "jackknife"
    assert found.se == pytest.approx(0.01, rel=0.7)
    assert not found.carried
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["runs"][0]["run"] == found.runs["run"][0]


def test_the_outliers_of_the_public_points_are_found() -> None:
    if not POINTS.is_file():
        pytest.skip("the public points are not here")
    table = pd.read_csv(POINTS)
    n, d, loss = (table[name].to_numpy() for name in ("params", "tokens", "loss"))
    law = constants(n, d, loss)
    found = influence(parametric_refit(n, d, loss, law), np.arange(len(n)), law["a"],
                      quantities={"params": n, "tokens": d, "loss": loss})  # fmt: skip
    outliers = {f"row {i}" for i in np.flatnonzero(table["outlier"])}
    assert found.runs["run"][0] in outliers
    assert found.together is not None
    assert len(found.together["runs"]) == 5
    assert len(set(found.together["runs"]) & outliers) >= 4
    # Without them the exponent is that of the 240 points, 0.514.
    assert found.together["without"] == pytest.approx(0.5139, abs=0.002)
    assert found.carried
    rest = table["outlier"].to_numpy() == 0
    n, d, loss = n[rest], d[rest], loss[rest]
    law = constants(n, d, loss)
    assert not influence(parametric_refit(n, d, loss, law), np.arange(len(n)), law["a"]).carried


def test_one_point_that_carries_a_line() -> None:
    x = np.append(np.geomspace(1, 3, 8), 300.0)
    y = 2 * x**-0.5
    y[-1] *= 3

    def fit(rows: np.ndarray) -> Outcome:
        return power_law.fit(x[rows], y[rows])

    law = fit(np.ones(9, dtype=bool)).estimates["exponent"]
    found = influence(one_by_one(fit, "exponent"), np.arange(9), law, name="exponent")
    assert found.se_source == "fit"
    assert found.se == law.se
    assert found.runs["run"][0] == "row 8"
    assert found.runs["without"][0] == pytest.approx(-0.5)
    assert found.carried
    assert "row 8 moves exponent most" in found.findings[0]
    assert found.together is None


def test_a_run_that_the_law_cannot_do_without() -> None:
    x = np.array([1.0, 1, 2, 4])

    def fit(rows: np.ndarray) -> Outcome:
        return power_law.fit(x[rows], x[rows] ** -0.5 * np.array([1, 1.01, 1, 1])[rows])

    law = fit(np.ones(4, dtype=bool)).estimates["exponent"]
    found = influence(one_by_one(fit, "exponent"), np.array(list("abcd")), law, name="exponent")
    assert found.runs[found.runs["without"].isna()]["run"].tolist() == ["c", "d"]
    assert "without c, d the law cannot be fitted" in found.findings


def test_two_runs_are_too_few() -> None:
    with pytest.raises(InputError, match="too few to leave one out"):
        influence(lambda keep: np.zeros(len(keep)), np.array([0, 1]), Estimate(0.5))
