"""Checkpoints: exact, atomic, verified, with the one before to fall back on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from sweep import checkpoint


def save(folder: Path, step: int) -> None:
    tensors = {"weights": torch.arange(5.0) + step, "state.1": torch.tensor(step)}
    checkpoint.save(folder, step, tensors, {"step": step, "lr": 0.1 + step})


def test_newest_comes_back_exactly_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path / "none") is None
    for step in (5, 30, 100):
        save(tmp_path, step)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.meta == {"step": 100, "lr": 100.1}
    assert found.names() == ["state.1", "weights"]
    assert torch.equal(found.tensor("weights"), torch.arange(5.0) + 100)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["step-100-a0", "step-30-a0"]
    assert len(list(tmp_path.iterdir())) == 4


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_damaged_newest_is_named_set_aside_and_the_one_before_used(tmp_path, caplog, damage, suffix: str) -> None:
    save(tmp_path, 5)
    save(tmp_path, 30)
    damage(tmp_path / f"step-30-a0.{suffix}")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.meta["step"] == 5
    if not (suffix == "json" and damage is Path.unlink):  # without its note it never was one
        assert "step-30" in caplog.text
        assert list(tmp_path.glob("step-30*.corrupt"))
    save(tmp_path, 30)
    again = checkpoint.load_newest(tmp_path)
    assert again is not None
    assert again.meta["step"] == 30


def test_interrupted_write_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-9-a0.part").write_bytes(b"half a file")
    (tmp_path / "step-9-a0.safetensors").write_bytes(b"no note yet")
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.meta["step"] == 5
    for step in (20, 30):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-20-a0.json", "step-20-a0.safetensors", "step-30-a0.json", "step-30-a0.safetensors",
    ]  # fmt: skip
