"""Stacked training against single training: curves, ends, resuming, divergence, memory."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from sweep import checkpoint, session
from sweep.lease import Lease, take
from sweep.record import read_record, read_status, read_steps
from sweep.schema import CHECKPOINT_DIR, STATUS_FILE
from sweep.session import Member
from sweep.spec import PlannedRun
from sweep.stack import Stack
from sweep.train import train_run, train_runs

Plan = Callable[..., PlannedRun]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(session, "SAVING_SHARE", math.inf)  # checkpoints as often as a plan says
    yield
    torch.set_num_threads(before)


def mixed(plan: Plan, **changes: Any) -> dict[str, PlannedRun]:
    """Runs of one shape that differ in everything that members may differ in."""
    given = {"execution": {"micro_batch": 2}, "steps": 60, "lr": 5e-3} | changes
    steps = given["steps"]
    return {
        "small batch": plan(sequences=2, **given),
        "another seed": plan(sequences=2, **given | {"seed": 1}),
        "beta2 and rate": plan(sequences=4, **given | {"lr": 2e-3, "beta2": 0.99}),
        "averaged, decaying": plan(sequences=4, weight_average=0.5, **given | {"schedule": {"name": "cosine"}}),
        "odd batch, early end": plan(sequences=6, **given | {"steps": steps // 4, "grad_clip": 0.0}),
        "large batch": plan(sequences=16, **given | {"steps": steps // 2, "weight_decay": 0.0}),
    }


def train(
    plans: dict[str, PlannedRun],
    folder: Path,
    corpus: Any,
    on_evaluation: Callable[[str, dict], None] | None = None,
    leases: Mapping[str, Lease] = MappingProxyType({}),
) -> dict[str, str | Exception]:
    """Train the plans as one stack, each in the folder of its name; returns how they ended."""
    ended: dict[str, str | Exception] = {}
    watched = {name: partial(on_evaluation, name) if on_evaluation else None for name in plans}
    members = [Member(plans[name], folder / name, leases.get(name), watched[name]) for name in plans]
    train_runs(members, corpus, "cpu", lambda member, outcome: ended.update({member.run_dir.name: outcome}))
    return ended


def curve(run_dir: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in read_record(run_dir).rows]


def assert_close(run_dir: Path, other: Path, tolerance: float = 2e-4) -> None:
    """Equal records but for rounding."""
    one, two = curve(run_dir), curve(other)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for name in ("test_loss", "train_loss", "lr", "flops", "tokens"):
        np.testing.assert_allclose([r[name] for r in one], [r[name] for r in two], rtol=tolerance, err_msg=name)
    steps, others = read_steps(run_dir), read_steps(other)
    np.testing.assert_allclose(steps["train_loss"], others["train_loss"], rtol=tolerance)
    np.testing.assert_array_equal(steps["lr"], others["lr"])


def assert_identical(run_dir: Path, other: Path) -> None:
    """Bit-identical curves, steps and final states."""
    assert curve(run_dir) == curve(other)
    steps, others = read_steps(run_dir), read_steps(other)
    for name in steps:
        assert steps[name].tobytes() == others[name].tobytes(), name
    one, two = (checkpoint.load_newest(folder / CHECKPOINT_DIR) for folder in (run_dir, other))
    assert one is not None
    assert two is not None
    assert one.names() == two.names()
    for name in one.names():
        assert torch.equal(one.tensor(name), two.tensor(name)), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_stack_trains_each_run_as_alone(plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path, family: str) -> None:
    plans = mixed(plan_tiny, family=family, steps=200)
    started = time.perf_counter()
    assert set(train(plans, tmp_path / "stack", tiny_corpus).values()) == {"done"}
    taken = time.perf_counter() - started
    assert 0 < sum(read_record(tmp_path / "stack" / name).status["wall_s"] for name in plans) < taken
    for name, planned in plans.items():
        assert train_run(planned, tmp_path / "alone" / name, tiny_corpus, "cpu") == "done"
        assert_close(tmp_path / "stack" / name, tmp_path / "alone" / name)
        ours, theirs = (read_record(tmp_path / way / name) for way in ("stack", "alone"))
        assert ours.run_id == theirs.run_id == planned.run_id
        assert ours.spec == theirs.spec
        for field in ("step", "epochs", "micro_batch", "ranks"):
            assert ours.status[field] == theirs.status[field], field
        assert sorted(p.name for p in (tmp_path / "stack" / name).iterdir()) == sorted(
            p.name for p in (tmp_path / "alone" / name).iterdir()
        )


def test_only_settings_make_runs_differ(plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path) -> None:
    """Two runs of one seed and different rates start with the same loss; two seeds do not."""
    plans = {"a": plan_tiny(), "b": plan_tiny(lr=1e-3), "c": plan_tiny(seed=1)}
    train(plans, tmp_path, tiny_corpus)
    losses = {name: read_steps(tmp_path / name)["train_loss"] for name in plans}
    assert losses["a"][0] == losses["b"][0] != losses["c"][0]
    assert losses["a"][5] != losses["b"][5]


class Interrupted(Exception):
    pass


def stop_at(step: int, run: str | None = None) -> Callable[[str, dict[str, Any]], None]:
    def watch(name: str, row: dict[str, Any]) -> None:
        if row["step"] >= step and run in (None, name):
            raise Interrupted

    return watch


def test_a_stack_resumes_bit_identically(plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path) -> None:
    """Interrupted twice, in the middle of large batches, once with members that have ended before."""
    plans = mixed(plan_tiny, execution={"micro_batch": 2, "checkpoint_seconds": 0.0})
    train(plans, tmp_path / "whole", tiny_corpus)
    for step in (20, 50):
        with pytest.raises(Interrupted):
            train(left(plans, tmp_path / "cut"), tmp_path / "cut", tiny_corpus, stop_at(step))
    middle = [path.stem for path in (tmp_path / "cut" / "large batch" / CHECKPOINT_DIR).glob("*.json")]
    assert any("+" in stem for stem in middle)  # in mid-batch
    train(left(plans, tmp_path / "cut"), tmp_path / "cut", tiny_corpus)
    for name in plans:
        assert_identical(tmp_path / "cut" / name, tmp_path / "whole" / name)


def test_a_stack_resumes_bit_identically_where_members_had_left_it(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path
) -> None:
    """No checkpoint is due by time; cut off after the early end of one run, and after that of all but one."""
    plans = mixed(plan_tiny)
    train(plans, tmp_path / "whole", tiny_corpus)
    for name, step in (("small batch", 50), ("large batch", 20)):
        with pytest.raises(Interrupted):
            train(left(plans, tmp_path / "cut"), tmp_path / "cut", tiny_corpus, stop_at(step, name))
    assert len(left(plans, tmp_path / "cut")) == 1
    train(left(plans, tmp_path / "cut"), tmp_path / "cut", tiny_corpus)
    for name in plans:
        assert_identical(tmp_path / "cut" / name, tmp_path / "whole" / name)


def left(plans: dict[str, PlannedRun], folder: Path) -> dict[str, PlannedRun]:
    return {name: run for name, run in plans.items() if (read_status(folder / name) or {}).get("status") != "done"}


def test_checkpoints_of_different_age_meet_at_the_one_in_common(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path
) -> None:
    """As a kill leaves them that comes while the members' checkpoints are written one by one."""
    plans = mixed(plan_tiny, execution={"micro_batch": 2, "checkpoint_seconds": 0.0})
    train(plans, tmp_path / "whole", tiny_corpus)
    with pytest.raises(Interrupted):
        train(plans, tmp_path / "cut", tiny_corpus, stop_at(30))
    ahead = max(
        (tmp_path / "cut" / "small batch" / CHECKPOINT_DIR).glob("*.json"), key=lambda path: path.stat().st_mtime
    )
    for path in ahead.parent.glob(f"{ahead.stem}.*"):
        path.unlink()
    train(left(plans, tmp_path / "cut"), tmp_path / "cut", tiny_corpus)
    for name in plans:
        assert_identical(tmp_path / "cut" / name, tmp_path / "whole" / name)


def test_kills_while_checkpoints_are_written_leave_one_in_common(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the same round of them, then in one at another position."""
    plans = mixed(plan_tiny, execution={"micro_batch": 2, "checkpoint_seconds": 0.0})
    train(plans, tmp_path / "whole", tiny_corpus)
    write, members = checkpoint.save, len(plans)
    for block, written in ((session.BLOCK_STEPS, members + 3), (session.BLOCK_STEPS, 3), (1, members + 3), (1, 3)):
        left = [write] * written
        monkeypatch.setattr(session, "BLOCK_STEPS", block)
        monkeypatch.setattr(checkpoint, "save", lambda *args, left=left: left.pop()(*args))
        leases = {name: take(tmp_path / "cut" / name, "run") for name in plans}
        with pytest.raises(IndexError):
            train(plans, tmp_path / "cut", tiny_corpus, leases=leases)
        for lease in leases.values():
            lease.release()
    monkeypatch.undo()
    train(plans, tmp_path / "cut", tiny_corpus)
    for name in plans:
        assert_identical(tmp_path / "cut" / name, tmp_path / "whole" / name)


def test_a_member_without_any_checkpoint_begins_anew_and_the_others_go_on(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path
) -> None:
    plans = mixed(plan_tiny, execution={"micro_batch": 2, "checkpoint_seconds": 0.0})
    with pytest.raises(Interrupted):
        train(plans, tmp_path / "cut", tiny_corpus, stop_at(30))
    shutil.rmtree(tmp_path / "cut" / "another seed" / CHECKPOINT_DIR)
    seen: dict[str, list[int]] = {}

    def watch(name: str, row: dict[str, Any]) -> None:
        seen.setdefault(name, []).append(row["step"])

    assert set(train(plans, tmp_path / "cut", tiny_corpus, watch).values()) == {"done"}
    assert seen["another seed"][0] == 1
    assert seen["small batch"][0] > 15
    for name, planned in plans.items():
        train_run(planned, tmp_path / "alone" / name, tiny_corpus, "cpu")
        assert_close(tmp_path / "cut" / name, tmp_path / "alone" / name)


def test_another_grouping_goes_on_to_the_same_curves(plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path) -> None:
    """Begun as one stack, ended as two and one alone; and the other way round."""
    plans = mixed(plan_tiny, execution={"micro_batch": 2, "checkpoint_seconds": 0.0})
    names = list(plans)
    groups = [{name: plans[name] for name in some} for some in (names[:3], names[3:5], names[5:])]
    for way in ("parted", "joined"):
        for group in [plans] if way == "parted" else groups:
            with pytest.raises(Interrupted):
                train(group, tmp_path / way, tiny_corpus, stop_at(25))
        for group in groups if way == "parted" else [plans]:
            train(left(group, tmp_path / way), tmp_path / way, tiny_corpus)
    for name, planned in plans.items():
        train_run(planned, tmp_path / "alone" / name, tiny_corpus, "cpu")
        for way in ("parted", "joined"):
            assert_close(tmp_path / way / name, tmp_path / "alone" / name)


@pytest.mark.parametrize("lr", [3e4, 1e30])
def test_a_diverging_run_leaves_and_the_others_do_not_notice(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path, lr: float
) -> None:
    plans = mixed(plan_tiny)
    bad = dataclasses.replace(plans["small batch"].spec.optimizer, lr=lr, grad_clip=0.0, weight_decay=0.0)
    wild = dataclasses.replace(plans["small batch"], spec=dataclasses.replace(plans["small batch"].spec, optimizer=bad))
    ended = train({"wild": wild, **plans}, tmp_path / "with", tiny_corpus)
    train(plans, tmp_path / "without", tiny_corpus)
    assert ended.pop("wild") == "diverged"
    assert set(ended.values()) == {"done"}
    assert read_record(tmp_path / "with" / "wild").status["error"]
    for name in plans:
        assert_close(tmp_path / "with" / name, tmp_path / "without" / name)


def test_a_run_resumes_bit_identically_where_its_only_companion_had_diverged(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path
) -> None:
    """At an evaluation; no checkpoint is due by time."""
    plans = {"wild": plan_tiny(lr=1e36, schedule={"warmup_steps": 0}), "fine": plan_tiny(steps=60, sequences=1)}
    assert train(plans, tmp_path / "whole", tiny_corpus) == {"wild": "diverged", "fine": "done"}
    assert read_record(tmp_path / "whole" / "wild").status["error"] == "test loss is not finite at step 1"
    with pytest.raises(Interrupted):
        train(plans, tmp_path / "cut", tiny_corpus, stop_at(40, "fine"))
    assert train({"fine": plans["fine"]}, tmp_path / "cut", tiny_corpus) == {"fine": "done"}
    assert_identical(tmp_path / "cut" / "fine", tmp_path / "whole" / "fine")


def test_a_member_with_trouble_of_its_own_leaves_alone(plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path) -> None:
    """Its lease is taken, its record cannot be written, it is not wanted any more."""
    names = ("taken", "full", "unwanted", "fine")
    plans = {name: plan_tiny(steps=200, seed=seed) for seed, name in enumerate(names)}
    leases = {name: take(tmp_path / name, "run", (1, 0)) for name in plans}

    def trouble(row: dict[str, Any]) -> None:
        if row["step"] >= 20 and (tmp_path / "full" / STATUS_FILE).is_file():
            take(tmp_path / "taken", "run", (2, 0)).release()
            (tmp_path / "full" / STATUS_FILE).unlink()
            (tmp_path / "full" / STATUS_FILE).mkdir()

    def unwanted() -> bool:
        return bool(rows) and rows[-1]["step"] >= 20

    rows: list[dict[str, Any]] = []
    members = [
        Member(
            planned,
            tmp_path / name,
            leases[name],
            on_evaluation=(lambda row: (rows.append(row), trouble(row))) if name == "fine" else None,
            unwanted=unwanted if name == "unwanted" else None,
        )
        for name, planned in plans.items()
    ]
    ended: dict[str, str | Exception] = {}
    train_runs(members, tiny_corpus, "cpu", lambda member, outcome: ended.update({member.run_dir.name: outcome}))
    for lease in leases.values():
        lease.release()
    assert type(ended["taken"]).__name__ == "LeaseLost"
    assert isinstance(ended["full"], OSError)
    assert ended["unwanted"] == "running"
    assert ended["fine"] == "done"
    assert read_record(tmp_path / "unwanted").status["status"] == "running"
    assert checkpoint.load_newest(tmp_path / "unwanted" / CHECKPOINT_DIR) is not None


def test_want_of_memory_halves_the_stack(
    plan_tiny: Plan, tiny_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for the passes of two runs at once."""
    whole = Stack.advance

    def advance(self: Stack, *arguments: Any) -> None:
        if len(self.runs) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        whole(self, *arguments)

    plans = {str(seed): plan_tiny(seed=seed) for seed in range(5)}
    monkeypatch.setattr(Stack, "advance", advance)
    assert set(train(plans, tmp_path, tiny_corpus).values()) == {"done"}
    monkeypatch.undo()
    for name, planned in plans.items():
        train_run(planned, tmp_path / "alone" / name, tiny_corpus, "cpu")
        assert_close(tmp_path / name, tmp_path / "alone" / name)
        assert "half of them at a time" in read_record(tmp_path / name).status["notes"][0]


def test_evaluations_do_not_depend_on_who_else_is_due(plan_tiny: Plan, tiny_corpus: Any) -> None:
    stack = Stack([plan_tiny(seed=seed, weight_average=0.5 * (seed % 2)) for seed in range(3)], tiny_corpus, "cpu")
    stack.advance(5 * 8, lambda: False)
    together = stack.evaluate(stack.runs)
    for run, found in zip(stack.runs, together, strict=True):
        assert stack.evaluate([run])[0] == pytest.approx(found, rel=1e-6)
    stack.leave(stack.runs[1])
    assert stack.evaluate(stack.runs) == [pytest.approx(together[i], rel=1e-6) for i in (0, 2)]
