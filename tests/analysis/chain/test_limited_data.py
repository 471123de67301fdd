"""Laws of the data from sweeps on limited data and of several passes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import published as pub
from analysis import repeated
from analysis.chain.limited_data import derive_data_laws, early_stopped, passes
from analysis.outcome import Warnings
from analysis.tables.runs import extract
from analysis.tables.table import Table, make_table
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep

SHAPES = ((2, 8), (2, 16), (2, 32), (3, 64))
SURFACE = pub.DataSurface(N_c=2e6, alpha_N=0.2, D_c=1e11, alpha_D=0.3, source="planted")
LAW = pub.Repeated(pub.Parametric(20.0, 400.0, 1.2, 0.35, 0.4, "planted"), 12.0, 5.0, "planted")


def _on_subsets(turn: float, amounts: tuple[float, ...] = (1e8, 3e8, 1e9, 3e9)) -> Table:
    """Undecayed runs of four sizes on four amounts of data, each a data set of its own; the test loss is Eq. 1.5's at
    the fraction `turn` of ln(tokens) along the run, and rises by the square of the distance to it."""
    base = synthetic_sweep(cells={shape: (16,) for shape in SHAPES}, seeds={}, sigma=0.0, points_per_decade=12)
    runs, curves = [], []
    for amount in amounts:
        own = base.runs.assign(run_id=base.runs["run_id"] + f"-{amount:g}", unique_tokens=amount)
        runs.append(own.assign(data_hash=f"{amount:g}"))
        for row in base.runs.itertuples():
            curve = base.curves[base.curves["run_id"] == row.run_id].copy()
            x = np.log(curve["tokens"].to_numpy())
            stop = x[0] + turn * (x[-1] - x[0])
            curve["test_loss"] = SURFACE.loss(row.params, amount) * np.exp(0.05 * (x - stop) ** 2)
            curves.append(curve.assign(run_id=f"{row.run_id}-{amount:g}"))
    return make_table(pd.concat(runs), pd.concat(curves), pool=True)


def test_early_stopped_losses_give_the_planted_laws() -> None:
    warnings = Warnings()
    found = derive_data_laws(extract(_on_subsets(0.7)), warnings, replicates=20)
    assert list(found) == ["kaplan-d", "kaplan-nd"]
    values = {name: e.value for name, e in found["kaplan-nd"].estimates.items()}
    assert values["alpha_N"] == pytest.approx(SURFACE.alpha_N, rel=0.03)
    assert values["alpha_D"] == pytest.approx(SURFACE.alpha_D, rel=0.03)
    assert found["kaplan-nd"].points == 16
    assert found["kaplan-d"].points == 4
    # The largest model is closest to the limit in which data alone bind.
    assert found["kaplan-d"].estimates["alpha_D"].value == pytest.approx(SURFACE.alpha_D, rel=0.25)
    assert found["kaplan-nd"].draws["alpha_D"].shape == (20,)
    assert not [w for w in warnings if w["code"] in ("skipped", "still_falling")]


def test_the_loss_is_read_where_it_is_least() -> None:
    """The smoothed curves never rise: their ends would be too high."""
    stopped = early_stopped(extract(_on_subsets(0.7)))
    expected = SURFACE.loss(stopped["params"].to_numpy(), stopped["unique_tokens"].to_numpy())
    np.testing.assert_allclose(stopped["loss"], expected, rtol=5e-3)
    assert not stopped["falling"].any()


def test_runs_that_did_not_stop_falling_are_said() -> None:
    warnings = Warnings()
    derive_data_laws(extract(_on_subsets(1.5)), warnings)
    assert [w["message"][:8] for w in warnings if w["code"] == "still_falling"] == ["16 of 16"]


def test_what_is_missing_for_the_laws_of_the_data_is_said() -> None:
    warnings = Warnings()
    assert derive_data_laws(extract(_on_subsets(0.7, (1e5, 1e6))), warnings) == {}
    assert [(w["law"], w["code"]) for w in warnings] == [("kaplan-d", "skipped"), ("repeated", "skipped")]
    assert "here the most is 2" in warnings[0]["message"]
    assert "single pass" in warnings[1]["message"]
    assert derive_data_laws([], Warnings()) == {}


def test_several_passes_give_the_law_of_repeated_data() -> None:
    """Decayed runs of up to thirty passes over one text, with losses of the planted law at their ends."""
    table = decayed_sweep(np.geomspace(3e8, 3e12, 9), shapes=SHAPES)
    runs = table.runs.assign(unique_tokens=3e6)
    last = table.curves.groupby("run_id")["tokens"].transform("max") == table.curves["tokens"]
    loss = repeated.predict(LAW, runs["params"].to_numpy(float), runs["tokens"].to_numpy(float), 3e6)
    curves = table.curves.copy()
    curves.loc[last, "test_loss"] = curves.loc[last, "run_id"].map(dict(zip(runs["run_id"], loss, strict=True)))
    found = derive_data_laws(extract(make_table(runs, curves)), Warnings())["repeated"]
    assert found.estimates["R_D"].value == pytest.approx(LAW.R_D, rel=0.01)
    assert found.estimates["beta"].value == pytest.approx(LAW.base.beta, rel=0.01)
    assert found.span["passes"][1] > 10


def test_passes_count_at_the_best_learning_rate_alone() -> None:
    decayed = extract(decayed_sweep([3e9, 3e10], shapes=SHAPES, lr_factors=(0.5, 1.0, 2.0)))
    undecayed = extract(synthetic_sweep(cells={(2, 16): (8, 16)}, lr_factors=(0.5, 1.0, 2.0), sigma=0.0, seeds={}))
    for runs, number in ((decayed, 2 * len(SHAPES)), (undecayed, 2)):
        found = passes(runs)["run_id"].unique()
        assert len(found) == number
        assert all(name.split("-")[2] == "1" for name in found)
