"""Faults in the middle of a stack: what concerns one run is its own, what concerns all is recorded for each."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands

from sweep.config import TrackingConfig
from sweep.launch import attempt
from sweep.launch.attempt import Ended, Evaluated, Job, Task, train_job
from sweep.launch.freeze import Frozen, freeze
from sweep.launch.local import buried
from sweep.lease import is_held, newest_number, take
from sweep.record import read_record, read_status, read_steps
from sweep.schema import CHECKPOINT_DIR
from sweep.stacking import stacks
from sweep.tracking import Mirror

SILENT = Mirror(TrackingConfig("none", "", None, "offline"))
# Three runs that are one stack: one of another batch, and one of another seed.
THREE = (
    "grid.blocks.run.product={batch_tokens:[128,256]}",
    "+grid.blocks.more.product={seed:[1]}",
    "+grid.blocks.more.set.batch_tokens=128",
    "horizon.steps=60",
    "execution.checkpoint_seconds=0",
    "data.max_epochs=100",
)


class Group:
    """A frozen sweep whose runs are one stack."""

    def __init__(self, commands: Commands, name: str = "out", *overrides: str) -> None:
        self.frozen: Frozen = freeze(commands.folder / name, commands.plan(*THREE, *overrides))
        (self.runs,) = stacks(self.frozen.runs)
        self.ids = [run.run_id for run in self.runs]
        self.dirs = [self.frozen.run_dir(run) for run in self.runs]

    def job(self, *members: int) -> Job:
        """Some of the runs, by number; all of them where none is named."""
        chosen = members or range(len(self.runs))
        return Job(tuple(Task(self.runs[i], self.dirs[i]) for i in chosen), self.frozen.corpus(self.runs[0]))

    def train(self, *members: int, report: Callable[[Any], None] = lambda _: None, **more: Any) -> list[Ended]:
        """Train some of the runs, or all, as one job."""
        return train_job(self.job(*members), "cpu", SILENT, report, **more)

    def at(self, member: int, action: Callable[[], None], step: int = 10) -> Callable[[Any], None]:
        """A report that does something, once, when a run is evaluated from `step` on."""
        done: list[int] = []

        def report(message: Evaluated | Ended) -> None:
            its = isinstance(message, Evaluated) and message.run_id == self.ids[member]
            if its and message.row["step"] >= step and not done:
                done.append(1)
                action()

        return report

    def statuses(self) -> list[str]:
        """As recorded."""
        return [(read_status(folder) or {}).get("status", "planned") for folder in self.dirs]

    def science(self, member: int) -> list[Any]:
        """What a record says of the run, the clock aside."""
        rows = [{**row, "elapsed_s": None} for row in read_record(self.dirs[member]).rows]
        return [rows, {name: values.tobytes() for name, values in read_steps(self.dirs[member]).items()}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


@pytest.fixture
def group(commands: Commands) -> Group:
    return Group(commands)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Group:
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOLOSS_CACHE", str(cache))
        found = Group(Commands(folder, cache))
    assert [ended.status for ended in found.train()] == ["done"] * 3
    return found


def test_ends_and_leases_are_those_of_each_run_as_it_ends(group: Group) -> None:
    heard: list[tuple[Any, list[bool]]] = []
    ended = group.train(report=lambda message: heard.append((message, [is_held(folder) for folder in group.dirs])))
    assert ended == [Ended(run_id, "done") for run_id in group.ids]
    ends = [(message.run_id, held) for message, held in heard if isinstance(message, Ended)]
    # in step with each other, runs of the smaller batch are through first
    assert [held for _, held in ends] == [[False, True, True], [False, True, False], [False] * 3]
    assert [run_id for run_id, _ in ends] == [group.ids[0], group.ids[2], group.ids[1]]


def test_members_that_cannot_be_had_are_left_out(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "WAIT_SECONDS", 0.2)
    assert [ended.status for ended in group.train(0)] == ["done"]
    before = (group.dirs[0] / "metrics.jsonl").stat().st_mtime_ns
    rival = take(group.dirs[1], "run")
    finished, held, trained = group.train()
    assert [finished, trained] == [Ended(group.ids[0], "done"), Ended(group.ids[2], "done")]
    assert (held.status, held.retry) == ("failed", False)
    assert f"in use by process {os.getpid()}" in (held.error or "")
    assert (group.dirs[0] / "metrics.jsonl").stat().st_mtime_ns == before
    assert newest_number(group.dirs[1]) == rival.number
    assert group.statuses() == ["done", "planned", "done"]


def test_a_member_taken_over_in_the_middle_leaves_the_others_as_they_would_be(group: Group, undisturbed: Group) -> None:
    report = group.at(2, lambda: take(group.dirs[2], "run", (1, 1)))  # type: ignore[arg-type, return-value]
    ended = group.train(report=report, claim=(1, 0))
    assert [one.status for one in ended] == ["done", "done", "running"]
    assert ended[2].error == "superseded by a later attempt"
    status = read_status(group.dirs[2]) or {}
    assert (status["status"], status["attempt"], status["error"]) == ("running", 1, None)
    assert newest_number(group.dirs[2]) == 2
    for member in (0, 1):
        close(group, undisturbed, member)


def test_a_record_that_cannot_be_written_and_a_run_that_diverges_concern_nobody_else(
    commands: Commands, undisturbed: Group
) -> None:
    group = Group(commands, "out", "+grid.blocks.wild.product={seed:[2]}", "+grid.blocks.wild.set.optimizer.lr=1e6")
    (group.dirs[1] / "metrics.jsonl").mkdir(parents=True)
    ended = group.train()
    assert [one.status for one in ended] == ["done", "failed", "done", "diverged"]
    assert (ended[1].error or "").startswith("IsADirectoryError: ")
    status = read_status(group.dirs[1]) or {}
    assert (status["status"], status["failures"], status["error"]) == ("failed", 1, ended[1].error)
    assert "metrics.jsonl" in (group.dirs[1] / "error.txt").read_text()
    assert not any(map(is_held, group.dirs))
    for member in (0, 2):
        close(group, undisturbed, member)


def test_an_error_of_all_is_recorded_for_each_that_has_not_ended(group: Group) -> None:
    def broken() -> None:
        raise ValueError("the report is broken")

    group.train(0)
    ended = group.train(report=group.at(1, broken), claim=(1, 0))
    assert ended == [
        Ended(group.ids[0], "done"),
        *(Ended(run_id, "failed", "ValueError: the report is broken") for run_id in group.ids[1:]),
    ]
    for folder in group.dirs[1:]:
        status = read_status(folder) or {}
        assert (status["status"], status["failures"], status["retry"]) == ("failed", 1, True)
        assert "in broken" in (folder / "error.txt").read_text()
        assert not is_held(folder)
    assert [one.status for one in group.train(1) + group.train(2)] == ["done", "done"]


def test_a_stack_that_was_stopped_goes_on_bit_for_bit(group: Group, undisturbed: Group) -> None:
    ended = group.train(report=group.at(0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended == [Ended(run_id, "running") for run_id in group.ids]
    assert all(list((folder / CHECKPOINT_DIR).glob("*.json")) for folder in group.dirs)
    assert [one.status for one in group.train()] == ["done"] * 3
    assert [group.science(i) for i in range(3)] == [undisturbed.science(i) for i in range(3)]


def test_a_member_that_is_not_wanted_leaves_alone(group: Group, undisturbed: Group) -> None:
    cancelled: set[str] = set()
    ended = group.train(
        report=group.at(1, lambda: cancelled.add(group.ids[1]), step=5),
        unwanted=lambda task: task.run_id in cancelled,
    )
    assert ended == [
        Ended(run_id, status) for run_id, status in zip(group.ids, ("done", "running", "done"), strict=True)
    ]
    assert group.train(1) == [Ended(group.ids[1], "done")]
    assert (read_status(group.dirs[1]) or {})["attempts"] == 2
    for member in range(3):
        close(group, undisturbed, member)


def test_the_runs_of_a_worker_that_has_died_are_failed_unless_they_have_ended(group: Group) -> None:
    group.train(0)
    tasks = [dataclasses.replace(task) for task in group.job().runs]
    assert [buried(task, "worker killed by signal 9") for task in tasks] == [
        Ended(group.ids[0], "done"),
        *(Ended(run_id, "failed", "worker killed by signal 9") for run_id in group.ids[1:]),
    ]
    assert group.statuses() == ["done", "failed", "failed"]


def close(group: Group, undisturbed: Group, member: int) -> None:
    """A run has the losses that it has in an undisturbed stack, but for the order of additions in another one."""
    losses = [[row["test_loss"] for row in read_record(g.dirs[member]).rows] for g in (group, undisturbed)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
