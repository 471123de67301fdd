"""One sweep under four conventions: what is counted moves the exponent, and nothing else does."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import published as pub
from analysis.chain import conventions
from analysis.chain.derive import derive
from analysis.chain.frontier import EVERYWHERE, derive_frontier
from analysis.chain.isoflop import derive_isoflop_decayed
from analysis.chain.results import Conventions
from analysis.outcome import Warnings
from analysis.tables.conventions import CONVENTIONS, count
from analysis.tables.runs import extract
from analysis.tables.sizes import make_sizes
from analysis.tables.table import Table, make_table
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep
from sweep.schema import InputError

BUDGETS = np.geomspace(3e9, 3e12, 10)
SHAPES = [(2, 8 * k) for k in (1, 2, 3, 4, 6, 8, 12)]
ALPHA, BETA = 0.35, 0.4


def sweep_in_totals() -> Table:
    """Final losses 1.2 + 20/N_total^0.35 + 400/D^0.4: only in totals is N_opt a power of C, with exponent 0.533."""
    table = decayed_sweep(BUDGETS, shapes=SHAPES)
    total = table.curves["run_id"].map(table.runs.set_index("run_id")["params_total"]).astype(float)
    tokens = table.curves["tokens"].astype(float)
    last = tokens == table.curves.groupby("run_id")["tokens"].transform("max")
    loss = (1.2 + 20 / total**ALPHA + 400 / tokens**BETA) * np.where(last, 1.0, 1.1)
    return make_table(table.runs, table.curves.assign(test_loss=loss), source="in totals")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    table = sweep_in_totals()
    return pd.concat([conventions.compare(table, law) for law in conventions.LAWS]).set_index(["law", "convention"])


@pytest.mark.parametrize("law", conventions.LAWS)
def test_the_convention_of_the_law_gives_its_exponent_and_the_others_do_not(rows: pd.DataFrame, law: str) -> None:
    a, b = rows.loc[law, "a"], rows.loc[law, "b"]
    assert list(a.index) == list(CONVENTIONS)
    assert a["total"] == pytest.approx(BETA / (ALPHA + BETA), abs=0.03)
    assert a["kaplan"] > a["with_head"] + 0.03 > a["total"] + 0.05
    for name in ("kaplan", "with_head", "total"):
        assert a[name] + b[name] == pytest.approx(1, abs=1e-6)
    assert a["chinchilla"] + b["chinchilla"] > 1.02  # C grows by less than 6 N D: its context and vocabulary terms
    assert (rows["note"] == "").all()
    assert rows["a_low"].isna().all()


def test_under_kaplan_it_is_the_law_itself(rows: pd.DataFrame) -> None:
    runs = extract(sweep_in_totals())
    edge = derive_frontier(Samples(runs), make_sizes(runs, None), None, None, EVERYWHERE, Warnings())
    flat = derive_isoflop_decayed(Samples(runs), Warnings())
    assert rows.loc[("frontier", "kaplan"), "a"] == edge.fits["raw"]["N"].exponent.value
    assert flat.fit is not None
    assert rows.loc[("isoflop", "kaplan"), "D_coefficient"] == flat.fit["D_coefficient"].value


def test_intervals_hold_values_and_repeat_under_a_seed() -> None:
    table = synthetic_sweep(points_per_decade=4)
    one, other = (conventions.compare(table, "isoflop", bootstrap=20, seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    assert (one["a_low"] < one["a_high"]).all()
    assert (one["N_coefficient_low"] > 0).all()


def test_a_table_without_components_has_kaplan_alone() -> None:
    table = sweep_in_totals()
    runs = table.runs.drop(columns=["params_total", "flops_per_token_head"])
    bare = make_table(runs, table.curves, source="bare")
    found = conventions.compare(bare, "frontier").set_index("convention")
    assert found["a"].notna().tolist() == [True, False, False, False]
    assert "needs params_total of every run" in found["note"]["total"]
    section = Conventions(found.reset_index(), conventions.published())
    assert json.loads(json.dumps(section.to_json()["published"][2], allow_nan=False))["a"] == 0.835


def test_published_exponents_stand_beside() -> None:
    printed = conventions.published()
    assert set(printed["convention"]) == set(CONVENTIONS)
    by_source = printed.set_index("source")["a"]
    assert by_source["Kaplan et al. 2020, C_min (Table 6)"] == pub.N_OPT.exponent == 0.73
    assert by_source["Porian et al. 2024, head counted"] == 0.706
    assert by_source["Hoffmann et al. 2022, approach 2"] == 0.49


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="parametric has no comparison of conventions; use frontier or isoflop"):
        conventions.compare(sweep_in_totals(), "parametric")
    few = decayed_sweep(BUDGETS, shapes=SHAPES[:2])
    with pytest.raises(InputError, match=r"^synthetic decayed sweep: frontier: 2 model sizes"):
        conventions.compare(few, "frontier")


def test_the_whole_chain_follows_the_convention() -> None:
    """Sizes, compute and every law under App. F: C is no longer 6 N D, so that a + b leaves one."""
    table = synthetic_sweep(points_per_decade=4, seeds={})
    laws = derive(table, convention="chinchilla", replicates=0)
    assert laws.meta["convention"] == "chinchilla"
    per_token = dict(zip(*count(table.runs, "chinchilla"), strict=True))
    assert laws.frontier is not None
    assert laws.isoflop is not None
    assert laws.isoflop.fit is not None
    points = laws.isoflop.points
    np.testing.assert_allclose(points["budget"], points["tokens"] * points["params"].map(per_token))
    assert laws.isoflop.fit["a"].value + laws.isoflop.fit["b"].value > 1.02
    ends = laws.runs.set_index("run_id")["flops"]
    row = table.runs.iloc[0]
    assert ends[row["run_id"]] == pytest.approx(per_token[row["params_total"]] * row["tokens"])
    optima = laws.frontier.optima[laws.frontier.optima["kind"] == "raw"]
    assert optima["params_run"].isin(table.runs["params_total"]).all()
    assert laws.conventions is not None
    own = laws.conventions.rows.set_index(["law", "convention"]).loc[("frontier", "chinchilla")]
    assert own["a"] == pytest.approx(laws.frontier.fits["raw"]["N"].exponent.value)
    assert laws.to_json()["laws"]["isoflop"]["convention"] == "chinchilla"
