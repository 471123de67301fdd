"""Wrong units are suspected where they are, and not where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.outcome import Warnings
from analysis.tables.suspicions import suspect
from analysis.uncertainty.simulate import synthetic_sweep
from sweep.schema import PF_DAY

POINTS = Path(__file__).parents[4] / "shared" / "data" / "chinchilla_points.csv"


def runs() -> pd.DataFrame:
    params, ratio = (a.ravel() for a in np.meshgrid(np.geomspace(4e7, 1e10, 5), np.geomspace(2, 200, 4)))
    tokens = params * ratio
    loss = 1.82 + 482 / params**0.348 + 2085 / tokens**0.366
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": 6 * params * tokens, "loss": loss})


def said(frame: pd.DataFrame, source: str = "loss") -> dict[str, str]:
    warnings = Warnings()
    suspect(frame, {"loss": source}, "params and tokens", warnings)
    return {w["code"]: w["message"] for w in warnings}


def test_plausible_tables_are_not_suspected() -> None:
    frame = runs()
    assert said(frame) == {}
    assert said(frame.assign(flops=frame["flops"] * np.linspace(0.85, 1.15, len(frame)))) == {}
    assert said(frame.assign(vocab_size=32_000), "val_loss") == {}
    assert said(frame.assign(loss=frame["loss"] * 1.15)) == {}  # another text and tokenizer
    small = synthetic_sweep(points_per_decade=2).runs  # thousands of parameters, bytes as tokens
    own = small[["params", "tokens", "flops", "vocab_size"]].astype(float).assign(loss=small["test_loss"].astype(float))
    assert said(own) == {}


@pytest.mark.skipif(not POINTS.is_file(), reason="the public table is not here")
def test_the_public_table_is_not_suspected_but_in_bits() -> None:
    frame = pd.read_csv(POINTS)
    assert said(frame) == {}
    assert "in bits" in said(frame.assign(loss=frame["loss"] / np.log(2)))["loss_units"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"loss": 1 / np.log(2)}, "loss_units", "1.44 times"),
        ({"loss": 10}, "loss_units", "guessing costs"),
        ({"params": 1e-6}, "params_units", "params suspected to be in millions"),
        ({"params": 1e-9}, "params_units", "at most 10"),
        ({"tokens": 1e-9}, "tokens_units", "in millions or billions"),
        ({"tokens": 1e-6}, "tokens_units", "tokens suspected"),
        ({"params": 1e-6}, "flops_6nd", "params or tokens in other units, a factor of 1e6 together"),
        ({"params": 1e-6, "tokens": 1e-9}, "flops_6nd", "a factor of 1e15 together"),
        ({"flops": 1 / PF_DAY}, "flops_6nd", "flops in PF-days"),
        ({"flops": 1 / PF_DAY, "params": 1e-6}, "flops_6nd", "flops in PF-days (8.64e19 FLOP) and params or tokens"),
        ({"flops": 1e-15}, "flops_6nd", "flops in units of 1e15 FLOP"),
        ({"flops": 1 / 3}, "flops_6nd", "2ND, the forward pass alone"),
        ({"flops": 1 / 2}, "flops_6nd", "multiply-adds counted as one"),
        ({"flops": 4 / 3}, "flops_6nd", "activations computed twice"),
        ({"flops": 1.7}, "flops_6nd", "1.7 times 6ND (from 1.7 to 1.7). The law reads params and tokens"),
    ],
)
def test_wrong_units_are_said(change: dict[str, float], code: str, words: str) -> None:
    frame = runs()
    assert words in said(frame.assign(**{name: frame[name] * factor for name, factor in change.items()}))[code]


def test_names_and_vocabularies_speak_too() -> None:
    assert "column called val_bpb" in said(runs(), "val_bpb")["loss_units"]
    assert "column called bits/byte" in said(runs(), "bits/byte")["loss_units"]
    assert "ln(vocab_size)" in said(runs().assign(vocab_size=20))["loss_units"]


def test_flops_that_follow_no_factor() -> None:
    frame = runs()
    scattered = frame["flops"] * np.random.default_rng(0).uniform(0.3, 3, len(frame))
    assert "suspected" not in said(frame.assign(flops=scattered))["flops_6nd"]


def test_params_and_tokens_in_each_other_s_place() -> None:
    frame = pd.DataFrame({"params": np.geomspace(1e9, 1e11, 9), "tokens": np.geomspace(5e7, 5e9, 9)})
    found = Warnings()
    suspect(frame, {}, "params and tokens", found)
    assert [w["code"] for w in found] == ["exchanged"]
