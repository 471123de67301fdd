"""Checkpoints: exact, atomic, verified, with the one before to fall back on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep import checkpoint
from sweep.lease import Lease, LeaseLost, take


def save(folder: Path, step: int, lease: Lease | None = None) -> None:
    tensors = {"weights": torch.arange(5.0) + step, "state.1": torch.tensor(step)}
    checkpoint.save(folder, step, tensors, {"step": step, "lr": 0.1 + step}, lease)


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


def test_attempts_share_no_file_and_a_superseded_one_adds_and_removes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    first = take(tmp_path, "run")
    for step in (5, 30):
        save(folder, step, first)
    first.release()
    second = take(tmp_path, "run")
    save(folder, 30, second)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"step-{stem}.{suffix}" for stem in ("30-a2", "5-a1") for suffix in ("json", "safetensors")
    ]
    with pytest.raises(LeaseLost):
        save(folder, 40, first)
    assert sorted(path.stem for path in folder.glob("*.json")) == ["step-30-a2", "step-5-a1"]
    found = checkpoint.load_newest(folder)
    assert found is not None
    assert found.meta["step"] == 30
    second.release()


def test_those_ahead_go_and_count_for_nothing_once_a_run_goes_on_from_one_before(tmp_path: Path) -> None:
    for step in (10, 30, 20):
        save(tmp_path, step)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["step-10-a0", "step-20-a0"]


def save_shards(folder: Path) -> None:
    """Step 7 of a state of one vector of 10 numbers and one whole tensor, in the pieces [0, 4) and [4, 10) of one
    rank."""
    share = checkpoint.Share([(0, 4), (4, 10)], {"weights": torch.arange(10.0)})
    checkpoint.save(folder, 7, {"count": torch.tensor(3)}, {"step": 7}, share=share)


def test_any_range_of_a_vector_is_read_from_its_pieces(tmp_path: Path) -> None:
    save_shards(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-7-a0-0of1.safetensors", "step-7-a0.json"]
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    for start in range(11):
        for stop in range(start, 11):
            assert found.piece("weights", start, stop).tolist() == list(range(start, stop))
    assert found.tensor("weights").tolist() == list(range(10))
    assert found.tensor("count") == 3
    assert "count" in found
    assert "average" not in found


def edit(index: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON file and make its hash fit."""
    content = json.loads(index.read_text())
    del content["hash"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    index.write_text(json.dumps({"hash": digest, **content}))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "step-5-a0.safetensors", ""])
def test_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, caplog, name: str) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, 5)
    save_shards(folder)
    (tmp_path / "secret.safetensors").write_bytes((folder / "step-7-a0-0of1.safetensors").read_bytes())
    edit(folder / "step-7-a0.json", lambda content: content["shards"][0].update(file=name))
    found = checkpoint.load_newest(folder)
    assert found is not None
    assert found.meta["step"] == 5
    assert "is not the name of one of its files" in caplog.text
    assert (tmp_path / "secret.safetensors").exists()


@pytest.mark.parametrize("pieces", [[[0, 4]], [[0, 4], [5, 10]], [[0, 6], [4, 10]], [[1, 4], [4, 10]], []])
def test_pieces_that_do_not_make_up_the_vectors_are_damage(tmp_path: Path, caplog, pieces: list[list[int]]) -> None:
    save_shards(tmp_path)
    edit(tmp_path / "step-7-a0.json", lambda content: content["shards"][0].update(pieces=pieces))
    assert checkpoint.load_newest(tmp_path) is None
    assert "do not add up" in caplog.text


def test_full_disk_leaves_the_checkpoints_before(small_disk: Path) -> None:
    folder = small_disk / "checkpoint"
    for step in (5, 30):
        save(folder, step)
    before = sorted(folder.iterdir())
    with pytest.raises(OSError, match=r"No space left on device; free some space.*step-40-a0.safetensors"):
        checkpoint.save(folder, 40, {"weights": torch.zeros(300_000)}, {})
    with pytest.raises(OSError, match="No space left on device"):  # once more at the same position
        checkpoint.save(folder, 30, {"weights": torch.zeros(300_000)}, {})
    assert sorted(folder.iterdir()) == before
    save(folder, 40)
    found = checkpoint.load_newest(folder)
    assert found is not None
    assert found.meta["step"] == 40
