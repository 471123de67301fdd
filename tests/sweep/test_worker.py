"""One attempt at a run in a process of its own: killed, stopped and superseded, failing, one of several ranks."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands, finish, until
from faults import fill

from sweep.config import TrackingConfig
from sweep.launch.attempt import Ended, Evaluated, Job, Task, train_job
from sweep.launch.freeze import freeze
from sweep.lease import is_held, newest_number, take
from sweep.record import read_record, read_status, read_steps
from sweep.schema import CHECKPOINT_DIR, METRICS_FILE, STATUS_FILE
from sweep.spec import PlannedRun
from sweep.status import sweep_status
from sweep.stored import last_evaluation
from sweep.tracking import Mirror

LONG = ("grid.blocks.run.product.batch_tokens=[128]", "horizon.steps=1200", "execution.checkpoint_seconds=0.1",
        "execution.eval_points_per_decade=12", "data.max_epochs=100")  # fmt: skip
SUPERSEDED = "running", "superseded by a later attempt", False
SILENT = Mirror(TrackingConfig("none", "", None, "offline"))

# Arguments: sweep_dir, directory of the token files, restart. Trains the runs of the plan and prints how they end; with
# one more argument rank 1 cannot, for an error of its own.
ATTEMPT = """
import dataclasses, sys
from pathlib import Path
from sweep.config import TrackingConfig
from sweep.launch.attempt import Job, Task, train_job
from sweep.plan import read_plan
from sweep.tracking import Mirror
from sweep.world import join

out, corpus = map(Path, sys.argv[1:3])
plan = read_plan(out / "plan.jsonl")
mirror = Mirror(TrackingConfig("none", "", None, "offline"))
with join() as world:
    if world.rank == 1 and len(sys.argv) > 4:
        plan = [dataclasses.replace(planned, execution=None) for planned in plan]
    job = Job(tuple(Task(planned, out / "runs" / planned.run_id) for planned in plan), corpus)
    for ended in train_job(job, "cpu", mirror, lambda message: None, (1, int(sys.argv[3])), world):
        print(ended)
"""


class Attempts:
    """A frozen sweep of one run, and processes that try it."""

    def __init__(self, commands: Commands, out: Path) -> None:
        self.commands = commands
        self.frozen = freeze(out, commands.plan(*LONG))
        (self.planned,) = self.frozen.runs
        self.run_dir = self.frozen.run_dir(self.planned)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, restart: int = 0, *more: str, **env: str) -> subprocess.Popen[str]:
        """Attempt `restart`, as the job scheduler counts them."""
        corpus = self.frozen.corpus(self.planned)
        command = [sys.executable, "-c", ATTEMPT, str(self.frozen.sweep_dir), str(corpus), str(restart), *more]
        self.started.append(
            subprocess.Popen(
                command, env=self.commands.env | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        return self.started[-1]

    def job(self, failures: int = 0) -> Job:
        """The run."""
        return Job((Task(self.planned, self.run_dir, failures),), self.frozen.corpus(self.planned))

    def ended(self, *fields: Any) -> Ended:
        """The run's end, by the other fields."""
        return Ended(self.planned.run_id, *fields)

    def reach(self, step: int, process: subprocess.Popen[str]) -> None:
        """Wait until a process has evaluated at `step` and written a checkpoint."""
        until(lambda: (last_evaluation(self.run_dir) or {}).get("step", 0) >= step, process)
        until(lambda: any((self.run_dir / CHECKPOINT_DIR).glob("*.json")), process)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The record of the run as one attempt made it."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOLOSS_CACHE", str(cache))
        attempts = Attempts(Commands(folder, cache), folder / "out")
    assert finish(attempts.start()) == (0, f"{attempts.ended('done')}\n", "")
    return attempts.run_dir


@pytest.fixture
def commands(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


@pytest.fixture
def attempts(commands: Commands) -> Iterator[Attempts]:
    found = Attempts(commands, commands.folder / "out")
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def broken(message: Evaluated | Ended) -> None:
    """A report that fails at the first evaluation."""
    if isinstance(message, Evaluated):
        raise ValueError("the report\nis broken")


def assert_one_record(run_dir: Path, undisturbed: Path, attempts: int) -> None:
    """`run_dir` holds what one undisturbed attempt writes, to the last bit, each line once, and nothing beside it."""
    lines = [[json.loads(line) for line in (d / METRICS_FILE).read_text().splitlines()] for d in (run_dir, undisturbed)]
    assert [{**row, "elapsed_s": None} for row in lines[0]] == [{**row, "elapsed_s": None} for row in lines[1]]
    assert read_record(run_dir).problems == []
    status = read_status(run_dir) or {}
    assert (status["status"], status["attempts"], status["attempt"]) == ("done", attempts, newest_number(run_dir))
    steps, expected = read_steps(run_dir), read_steps(undisturbed)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, steps[name])
    names = [path.name for path in run_dir.iterdir()]
    assert len(names) <= 12, names
    assert not [path for path in run_dir.rglob("*.part")]


def test_a_killed_attempt_and_a_cut_line_cost_nothing(attempts: Attempts, undisturbed: Path) -> None:
    for restart, step in enumerate((50, 400)):
        process = attempts.start(restart)
        attempts.reach(step, process)
        process.kill()
        process.wait()
        metrics = attempts.run_dir / METRICS_FILE
        metrics.write_bytes(metrics.read_bytes()[:-40])  # what a power cut may leave
        (attempts.run_dir / f"{STATUS_FILE}.0123abcd.part").write_text('{"status": "do')
        assert not is_held(attempts.run_dir)
        assert (read_status(attempts.run_dir) or {})["status"] == "running"
    assert finish(attempts.start(2))[1] == f"{attempts.ended('done')}\n"
    assert_one_record(attempts.run_dir, undisturbed, attempts=3)


def test_a_zombie_attempt_leaves_no_trace(attempts: Attempts, undisturbed: Path) -> None:
    zombie = attempts.start(0)
    attempts.reach(50, zombie)
    zombie.send_signal(signal.SIGSTOP)
    later = attempts.start(1)  # the scheduler believes the first one's node dead
    until(lambda: newest_number(attempts.run_dir) == 2, later)
    attempts.reach(100, later)
    zombie.send_signal(signal.SIGCONT)
    assert finish(zombie) == (0, f"{attempts.ended(*SUPERSEDED)}\n", "")
    assert finish(later) == (0, f"{attempts.ended('done')}\n", "")
    assert_one_record(attempts.run_dir, undisturbed, attempts=2)


def test_a_zombie_that_wakes_after_the_end_leaves_no_trace(attempts: Attempts, undisturbed: Path) -> None:
    zombie = attempts.start(0)
    attempts.reach(50, zombie)
    zombie.send_signal(signal.SIGSTOP)
    assert finish(attempts.start(1)) == (0, f"{attempts.ended('done')}\n", "")
    before = {path: path.read_bytes() for path in attempts.run_dir.rglob("*") if path.is_file()}
    zombie.send_signal(signal.SIGCONT)
    assert finish(zombie) == (0, f"{attempts.ended(*SUPERSEDED)}\n", "")
    assert {path: path.read_bytes() for path in attempts.run_dir.rglob("*") if path.is_file()} == before
    assert_one_record(attempts.run_dir, undisturbed, attempts=2)


def test_a_full_disk_costs_nothing_but_time(commands: Commands, small_disk: Path, undisturbed: Path) -> None:
    attempts = Attempts(commands, small_disk / "out")
    process = attempts.start(0)
    attempts.reach(100, process)
    process.send_signal(signal.SIGSTOP)  # so that it is still in the middle afterwards
    ballast = fill(small_disk)
    process.send_signal(signal.SIGCONT)
    code, out, _ = finish(process)
    assert code == 0
    assert out.count("\n") == 1
    assert "No space left on device; free some space, then the same command goes on" in out
    assert str(attempts.run_dir) in out
    assert "retry=False" in out
    kept = [row["step"] for row in read_record(attempts.run_dir).rows]
    assert read_record(attempts.run_dir).problems == []
    assert kept == [row["step"] for row in read_record(undisturbed).rows][: len(kept)]
    ballast.unlink()
    assert finish(attempts.start(1))[:2] == (0, f"{attempts.ended('done')}\n")
    assert_one_record(attempts.run_dir, undisturbed, attempts=2)


def test_an_attempt_superseded_between_two_evaluations_ends_without_a_word(attempts: Attempts) -> None:
    def supersede(message: Evaluated | Ended) -> None:
        past = isinstance(message, Evaluated) and message.row["step"] >= 100
        if past and newest_number(attempts.run_dir) == 1:
            take(attempts.run_dir, "run", (1, 1))

    assert train_job(attempts.job(), "cpu", SILENT, supersede, claim=(1, 0)) == [attempts.ended(*SUPERSEDED)]
    status = read_status(attempts.run_dir) or {}
    assert (status["status"], status["attempt"], status["error"]) == ("running", 1, None)


def test_a_result_is_not_made_again_but_becomes_the_attempts(undisturbed: Path, tmp_path: Path) -> None:
    number, attempts = newest_number(undisturbed), (read_status(undisturbed) or {})["attempts"]
    planned = PlannedRun(read_record(undisturbed).spec, *_defaults())
    job = Job((Task(planned, undisturbed),), tmp_path / "no such corpus")
    assert train_job(job, "cpu", SILENT, print) == [Ended(planned.run_id, "done")]
    status = read_status(undisturbed) or {}
    assert (status["status"], status["attempt"], status["attempts"]) == ("done", number + 1, attempts)
    assert not is_held(undisturbed)


def test_an_error_is_recorded_with_its_traceback_and_counted(attempts: Attempts) -> None:
    for restart in range(3):
        (ended,) = train_job(attempts.job(), "cpu", SILENT, broken, claim=(1, restart))
        assert ended == attempts.ended("failed", "ValueError: the report is broken")
        status = read_status(attempts.run_dir) or {}
        assert (status["status"], status["error"], status["failures"]) == ("failed", ended.error, restart + 1)
        assert "in broken" in (attempts.run_dir / "error.txt").read_text()
        assert not is_held(attempts.run_dir)
    train_job(attempts.job(), "cpu", SILENT, broken, claim=(2, 0))  # a person has asked again
    assert (read_status(attempts.run_dir) or {})["failures"] == 1


def test_failures_of_this_call_that_the_record_does_not_know_count_too(attempts: Attempts) -> None:
    train_job(attempts.job(failures=1), "cpu", SILENT, broken)  # the first could not be written
    assert (read_status(attempts.run_dir) or {})["failures"] == 2
    train_job(attempts.job(), "cpu", SILENT, broken)  # a person has asked again
    assert (read_status(attempts.run_dir) or {})["failures"] == 1


def test_a_run_that_failed_before_it_began_is_shown_without_a_plan_too(attempts: Attempts) -> None:
    (ended,) = train_job(dataclasses.replace(attempts.job(), corpus=Path("nowhere")), "cpu", SILENT, print)
    (attempts.frozen.sweep_dir / "plan.jsonl").unlink()
    (run,) = sweep_status(attempts.frozen.sweep_dir).runs
    assert (run.shown, run.error) == ("failed", ended.error)


def test_unusable_input_is_not_tried_again(attempts: Attempts) -> None:
    (attempts.run_dir).mkdir(parents=True)
    (attempts.run_dir / "spec.json").write_text('{"run_id": "another"}')
    (ended,) = train_job(attempts.job(), "cpu", SILENT, print)
    assert (ended.status, ended.retry) == ("failed", False)
    assert "holds run another" in (ended.error or "")
    status = read_status(attempts.run_dir) or {}
    assert (status["error"], status["retry"]) == (ended.error, False)
    assert not (attempts.run_dir / "error.txt").exists()


@pytest.mark.parametrize("failing", [False, True])
def test_two_ranks_train_under_one_lease_and_the_error_of_either_is_recorded(
    attempts: Attempts, undisturbed: Path, failing: bool
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    more = ["fail"] * failing
    ranks = [attempts.start(0, *more, RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in range(2)]
    outcomes = [finish(process) for process in ranks]
    status = read_status(attempts.run_dir) or {}
    if failing:
        assert ["AttributeError" in out for _, out, _ in outcomes] == [True, True], outcomes
        assert (status["status"], status["failures"], status["attempt"]) == ("failed", 1, 1)
        assert status["error"].startswith("AttributeError: 'NoneType'")
        assert "in train_run" in (attempts.run_dir / "error.txt").read_text()
        return
    assert [out for _, out, _ in outcomes] == [f"{attempts.ended('done')}\n"] * 2, outcomes
    assert (status["status"], status["attempts"], status["attempt"]) == ("done", 1, 1)
    losses, expected = ([row["test_loss"] for row in read_record(d).rows] for d in (attempts.run_dir, undisturbed))
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def _defaults() -> tuple[Any, Any]:
    from sweep.spec import Execution, Source

    return Source(), Execution()
