"""Composition through Hydra: what overrides mean, and mistakes in one line with the name that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweep.compose import compose, settle
from sweep.plan import plan_one, plan_sweep
from sweep.schema import InputError


def test_interpolations_are_resolved() -> None:
    config = compose("sweep", ["experiment=smoke", "launcher.threads=3"])
    assert config["sweep_dir"] == "sweeps/smoke"
    assert config["execution"]["threads"] == 3


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["optimizer.lrr=1"], r"unknown key optimizer.lrr; did you mean optimizer.lr\?"),
        (["experiment=quick", "horizn.steps=5"], r"unknown key horizn.steps; did you mean horizon.steps\?"),
        (["experiment=quik"], r"no option 'quik' in group 'experiment'; did you mean quick\?"),
        (["model=lama"], r"no option 'lama' in group 'model'; did you mean llama\?"),
        (["batch_tokens"], "configuration: cannot read the override .*batch_tokens.*; it reads key=value"),
        (["+grid.blocks.run.where=params<9"], "configuration: cannot read the override .*where=params<9"),
        (["model=null"], "configuration: .*group override"),
        (["seed=${nothing}"], "configuration: .*nothing"),
    ],
)
def test_mistyped_overrides(overrides: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        compose("sweep", overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("+optimizer.betas=1", "unknown key optimizer.betas; did you mean beta"),
        ("+data.max_epoch=1", "unknown key data.max_epoch; did you mean max_epochs"),
        ("+bach=1", "unknown key bach; did you mean batch_tokens|unknown key bach"),
        ("+grid.block={}", "unknown key grid.block"),
        ("batch_tokens=many", "batch_tokens must be int, not 'many'"),
        ("precision=fp16", "precision must be one of fp32, tf32, bf16"),
        ("launcher.workers=all", "launcher.workers must be one of auto"),
        ("launcher.retries=-1", "launcher.retries"),
        ("execution=null", "execution must be a mapping, not None"),
        ("horizon=null", "horizon must be a mapping, not None"),
        ("grid.blocks=3", "grid.blocks must be a mapping, not 3"),
        ("+grid.blocks.run.set=3", "grid.blocks.run.set must be dict, not 3"),
        ("sweep_dir=null", "sweep_dir must be str, not None"),
        ("data.files=3", "data.files must be tuple"),
        ("data.test_fraction=2", "test_fraction must lie between 0 and 1"),
        ("data.tokenizer=bpe data.vocab_size=0", "vocab_size must be positive"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_by_the_plan(override: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        plan_sweep(compose("sweep", override.split()))


def test_an_override_replaces_the_alternatives() -> None:
    base = ["horizon.tokens=1e6", "model.shape=2x32"]
    assert compose("train", base)["horizon"]["tokens"] == 1e6
    later = compose("train", ["schedule.warmup_fraction=0.1", "model.n_layer=3", "model.d_model=48"])
    assert later["schedule"]["warmup_steps"] is None
    assert later["model"]["shape"] is None
    assert plan_one(later).spec.model.n_layer == 3
    kaplan = compose("sweep", ["experiment=kaplan", "horizon.tokens=1e9", "schedule.steps=null"])
    assert kaplan["horizon"] == {**kaplan["horizon"], "steps": None, "tokens": 1e9}


def two_blocks() -> dict[str, Any]:
    return {
        "horizon": {"steps": 5, "tokens": None},
        "grid": {
            "blocks": {
                "a": {"product": {"batch_tokens": [128]}, "set": {"horizon": {"steps": 3}, "seed": 1}},
                "b": {"zip": {"seed": [1, 2]}, "set": {"horizon.tokens": 3, "batch_tokens": 256}},
            }
        },
    }


def test_an_override_wins_over_what_blocks_set_and_leaves_their_axes() -> None:
    config = settle(two_blocks(), ["horizon.tokens=1e6", "seed=7", "batch_tokens=512"])
    assert config["grid"]["blocks"]["a"] == {"product": {"batch_tokens": [128]}, "set": {}}
    assert config["grid"]["blocks"]["b"] == {"zip": {"seed": [1, 2]}, "set": {}}
    assert config["horizon"]["steps"] is None


def test_an_override_without_effect_is_refused() -> None:
    config = two_blocks()
    config["grid"]["blocks"]["b"]["product"] = {"batch_tokens": [64]}
    with pytest.raises(InputError, match=r"batch_tokens has no effect: it is an axis of the grid \(a, b\)"):
        settle(config, ["batch_tokens=512"])


def test_a_shorter_horizon_applies_to_every_run_of_an_experiment() -> None:
    runs = plan_sweep(compose("sweep", ["experiment=smoke", "horizon.steps=7"]))
    assert {run.spec.steps for run in runs} == {7}


def test_own_groups_are_searched_beside_the_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: llama\nname: mine\n"
        "grid:\n  blocks:\n    run:\n      product:\n        batch_tokens: [1024, 2048]\n"
    )
    runs = plan_sweep(compose("sweep", ["experiment=mine", "horizon.steps=100"], tmp_path))
    assert [(run.spec.model.family, run.spec.batch_tokens) for run in runs] == [("llama", 1024), ("llama", 2048)]
    with pytest.raises(InputError, match="is not a folder"):
        compose("sweep", [], tmp_path / "missing")


def test_a_broken_yaml_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("# @package _global_\nname: [1, 2\n")
    with pytest.raises(InputError, match="configuration: ") as error:
        compose("sweep", ["experiment=broken"], tmp_path)
    assert "\n" not in str(error.value)
