"""Stacks of a frozen plan: they stay, whatever the next command would make of the runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Commands

from sweep.launch.freeze import freeze
from sweep.schema import PLAN_FILE
from sweep.stacking import in_order

BATCHES = "grid.blocks.run.product.batch_tokens=[128,256,512,1024]"


@pytest.fixture
def commands(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Commands:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


def test_stacks_stay_as_they_were_frozen(commands: Commands) -> None:
    out, runs = commands.folder / "out", commands.plan(BATCHES)
    assert [run.stack for run in runs] == [0] * 4
    first = freeze(out, runs)
    before = (out / PLAN_FILE).read_bytes()
    others = commands.plan(BATCHES, "launcher.workers=64")
    assert {run.stack for run in others} == {None}
    assert freeze(out, others).runs == first.runs
    assert (out / PLAN_FILE).read_bytes() == before


def test_without_stacks_their_runs_go_on_by_themselves(commands: Commands) -> None:
    out, alone = commands.folder / "out", commands.plan(BATCHES, "launcher.stack=off")
    freeze(out, commands.plan(BATCHES))
    before = (out / PLAN_FILE).read_bytes()
    left = freeze(out, alone, stack=False).runs
    assert [(run.stack, run.execution) for run in left] == [(None, run.execution) for run in alone]
    assert (out / PLAN_FILE).read_bytes() == before


def test_a_plan_without_stacks_stays_so(commands: Commands) -> None:
    out, alone = commands.folder / "out", commands.plan(BATCHES, "launcher.stack=off")
    first = freeze(out, alone)
    assert freeze(out, commands.plan(BATCHES)).runs == first.runs


def test_what_is_left_starts_by_priority_and_the_longest_stack_first(commands: Commands) -> None:
    blocks = (
        "+grid.blocks.run.priority=1",
        "+grid.blocks.first.set.seed=7",
        "+grid.blocks.more.product.batch_tokens=[128,256]",
        "+grid.blocks.more.set.model.shape=3x16",
        "+grid.blocks.more.priority=1",
    )
    left = freeze(commands.folder / "out", commands.plan(BATCHES, *blocks)).unfinished()
    assert [run.priority for run in left] == [0] + [1] * 6
    together = in_order(left)
    assert [run for members in together for run in members] == left
    assert sorted(len(members) for members in together) == [1, 2, 4]
    first, second = (sum(run.costs["seconds"] for run in members) for members in together[1:])
    assert first >= second
