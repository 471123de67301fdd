"""A job's work, in a process started as srun would start it, without SLURM: what it does on signals, on failures, on
files that appear meanwhile, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands, until

from sweep.config import TrackingConfig
from sweep.launch.freeze import Frozen, freeze
from sweep.launch.slurm.job import Pack
from sweep.launch.slurm.resources import REQUEUE
from sweep.launch.slurm.submission import CANCEL_FILE, STOPPED_FILE, reserve
from sweep.lease import is_held
from sweep.plan import plan_offsets
from sweep.record import read_record, read_status
from sweep.schema import PLAN_FILE

RUN = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"
STACKED = ("launcher.stack=on",)  # both runs are one stack
LONG = ("horizon.steps=900", "execution.checkpoint_seconds=1000")


class Job:
    """The sweep of `commands` as one job, started as often as asked; its runs one after another unless asked."""

    def __init__(self, commands: Commands, *overrides: str) -> None:
        os.environ["ISOLOSS_CACHE"] = commands.env["ISOLOSS_CACHE"]
        self.folder, self.env = commands.folder, commands.env
        self.sweep_dir = commands.folder / "out"
        self.frozen: Frozen = freeze(self.sweep_dir, commands.plan("launcher.stack=off", *overrides))
        self.dirs = [self.frozen.run_dir(run) for run in self.frozen.runs]
        self.number = reserve(self.sweep_dir)
        self.processes: list[subprocess.Popen[str]] = []

    def pack(self, **changes: Any) -> Pack:
        offsets = plan_offsets(self.sweep_dir / PLAN_FILE)
        fields: dict[str, Any] = {
            "sweep_dir": str(self.sweep_dir),
            "submission": self.number,
            "runs": tuple((run.run_id, offsets[run.run_id]) for run in self.frozen.runs),
            "corpora": {key: str(path) for key, path in self.frozen.corpora.items()},
            "device": "cpu",
            "threads": 1,
            "tracking": TrackingConfig("none", "isoloss", None, "auto"),
            "retries": 1,
            "stop_after": 5,
            "minutes": 7,
            "kill_wait": 10,
            "command": ("isoloss", "sweep", "experiment=trial"),
        }
        return Pack(**{**fields, **changes})

    def start(self, restart: int = 0, before: str = "", **changes: Any) -> subprocess.Popen[str]:
        """The job's process, as start `restart` of job 17."""
        path = self.folder / "pack.pkl"
        path.write_bytes(pickle.dumps(self.pack(**changes)))
        env = {**self.env, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restart)}
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{RUN}", str(path)], env=env, stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def run(self, restart: int = 0, **changes: Any) -> tuple[int, str]:
        """Exit code and output of a start that nobody disturbs."""
        process = self.start(restart, **changes)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def statuses(self) -> list[str]:
        return [(read_status(folder) or {}).get("status", "planned") for folder in self.dirs]

    def notes(self) -> dict[str, Any]:
        """What the job has written down about its progress."""
        return next((json.loads(path.read_text()) for path in (self.sweep_dir / "slurm").rglob("*.progress")), {})

    def training(self, run: int = 0) -> None:
        """Wait until a run has been evaluated."""
        until(lambda: (self.dirs[run] / "metrics.jsonl").exists() and read_record(self.dirs[run]).rows)


@pytest.fixture
def commands(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Commands:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


@pytest.fixture
def jobs(commands: Commands) -> Iterator[Any]:
    """A function that makes a job; its processes are gone after the test."""
    made: list[Job] = []

    def make(*overrides: str) -> Job:
        made.append(Job(commands, *overrides))
        return made[-1]

    yield make
    for job in made:
        for process in job.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_trains_its_runs_in_turn_and_skips_what_is_finished(jobs: Any) -> None:
    job = jobs()
    code, output = job.run()
    assert code == 0
    assert job.statuses() == ["done", "done"]
    assert [line.split()[2] for line in output.splitlines() if line.endswith("done")] == ["done", "done"]
    for folder in job.dirs:
        assert f"{folder.name}  step 30/30  test loss {read_record(folder).rows[-1]['test_loss']:.4f}" in output
        manifest = read_record(folder).manifest
        assert manifest["argv"] == ["isoloss", "sweep", "experiment=trial"]
    before = [(folder / "status.json").read_bytes() for folder in job.dirs]
    assert job.run(restart=1) == (0, "")
    assert [(folder / "status.json").read_bytes() for folder in job.dirs] == before


def test_usr2_saves_and_asks_for_the_queue_and_the_next_start_goes_on_bit_for_bit(jobs: Any) -> None:
    job = jobs(*LONG)
    process = job.start()
    job.training()
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == REQUEUE
    assert job.statuses() == ["running", "planned"]
    stopped = read_status(job.dirs[0])
    assert stopped is not None
    assert 0 < stopped["step"] < 900
    assert job.run(restart=1)[0] == 0
    assert job.statuses() == ["done", "done"]
    curves = [science(folder) for folder in job.dirs]
    for folder in job.dirs:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert job.run()[0] == 0
    assert [science(folder) for folder in job.dirs] == curves


def science(folder: Path) -> tuple[list[Any], list[bytes]]:
    """What a record says of the run, the clock aside."""
    rows = [{key: value for key, value in row.items() if key != "elapsed_s"} for row in read_record(folder).rows]
    with np.load(folder / "steps.npz") as series:
        return rows, [series[name].tobytes() for name in series.files]


def test_usr2_before_the_training_code_is_there_is_not_lost(jobs: Any) -> None:
    job = jobs(*LONG)
    early = "import os, signal, sweep.world as w\nold = w.join\n"
    early += "w.join = lambda: os.kill(os.getpid(), signal.SIGUSR2) or old()"
    process = job.start(before=early)
    assert process.wait(timeout=60) == REQUEUE
    assert job.statuses() == ["running", "planned"]


def test_sigterm_saves_and_waits_to_be_killed(jobs: Any) -> None:
    job = jobs(*LONG)
    process = job.start()
    job.training()
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    until(lambda: "waiting to be killed" in process.stdout.readline())
    assert process.poll() is None
    assert job.statuses() == ["running", "planned"]
    assert list((job.dirs[0] / "checkpoint").glob("*.safetensors"))
    assert job.notes()["idle"] == 0


def test_what_nobody_kills_after_sigterm_asks_for_the_queue(jobs: Any) -> None:
    job = jobs(*LONG)
    process = job.start(kill_wait=-29)
    job.training()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == REQUEUE


def test_a_cancelled_run_stops_and_the_next_one_is_trained(jobs: Any) -> None:
    job = jobs("horizon.steps=30000")
    (job.dirs[1]).mkdir(parents=True)
    process = job.start()
    job.training()
    (job.dirs[0] / CANCEL_FILE).touch()
    job.training(1)
    assert job.statuses() == ["running", "running"]
    (job.dirs[1] / CANCEL_FILE).touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert job.run(restart=1) == (0, "")


def test_a_failing_run_is_tried_again_and_leaves_the_others_alone(jobs: Any) -> None:
    job = jobs()
    (job.dirs[0] / "metrics.jsonl").mkdir(parents=True)
    code, _ = job.run()
    assert code == 1
    assert job.statuses() == ["failed", "done"]
    status = read_status(job.dirs[0])
    assert status is not None
    assert status["failures"] == 2
    assert "metrics.jsonl" in status["error"]
    assert "Traceback" in (job.dirs[0] / "error.txt").read_text()
    assert job.run(restart=1) == (1, "")  # not tried again by the same submission
    (job.dirs[0] / "metrics.jsonl").rmdir()
    assert job.run(submission=job.number + 1)[0] == 0  # a person has asked again
    assert job.statuses() == ["done", "done"]


def test_runs_that_all_fail_alike_stop_the_sweep(jobs: Any) -> None:
    job = jobs()
    for folder in job.dirs:
        (folder / "metrics.jsonl").mkdir(parents=True)
    code, output = job.run(stop_after=2)
    assert code == 1
    stopped = json.loads((job.sweep_dir / "slurm" / STOPPED_FILE).read_text())
    assert "the first 2 runs that ended have all failed with" in stopped["reason"]
    assert stopped["reason"] in output
    for folder in job.dirs:
        (folder / "metrics.jsonl").rmdir()
    code, output = job.run(submission=job.number + 1)
    assert (code, output, job.statuses()) == (0, "", ["failed", "failed"])
    (job.sweep_dir / "slurm" / STOPPED_FILE).unlink()
    assert job.run(submission=job.number + 2)[0] == 0


def test_starts_without_progress_fail_the_run_and_not_the_next(jobs: Any) -> None:
    job = jobs(*LONG)
    for restart, idle in ((1, 0), (2, 1)):
        process = job.start(restart)
        until(lambda idle=idle: job.notes().get("idle") == idle, process)
        process.kill()
        process.wait()
    code, output = job.run(3)
    assert code == 1
    assert job.statuses() == ["failed", "done"]
    status = read_status(job.dirs[0])
    assert status is not None
    assert "no progress within the time limit of 7 minutes in 3 starts" in status["error"]
    assert "launcher.time_limit_minutes" in output


def test_a_stack_saves_on_usr2_and_goes_on_without_the_run_that_is_cancelled(jobs: Any) -> None:
    job = jobs("horizon.steps=20000", *STACKED)
    process = job.start()
    job.training()
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == REQUEUE
    assert job.statuses() == ["running", "running"]
    at = [(read_status(folder) or {})["step"] for folder in job.dirs]
    assert at[0] // 2 == at[1] > 0  # of half the batch
    process = job.start(1)
    until(lambda: (read_status(job.dirs[1]) or {})["attempts"] == 2, process)
    (job.dirs[0] / CANCEL_FILE).touch()
    until(lambda: not is_held(job.dirs[0]), process)
    assert is_held(job.dirs[1])
    (job.dirs[1] / CANCEL_FILE).touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split()[1:] for line in output.splitlines() if line.endswith("running")] == [
        [folder.name, "running"] for folder in job.dirs
    ]


def test_a_stack_that_fails_is_tried_again_run_by_run(jobs: Any) -> None:
    job = jobs(*STACKED)
    # an error of the whole stack, as long as the second run is in it
    before = "import sweep.session as s\nold = s.Session.__init__\n"
    before += "def init(self, attempts, *rest):\n"
    before += (
        f"    if any(a.member.run_dir.name == {job.dirs[1].name!r} for a in attempts): raise ValueError('no luck')\n"
    )
    before += "    old(self, attempts, *rest)\n"
    before += "s.Session.__init__ = init"
    process = job.start(before=before)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert job.statuses() == ["done", "failed"]
    assert [(read_status(folder) or {})["failures"] for folder in job.dirs] == [1, 2]
    said = [line.split()[1:] for line in output.splitlines() if "  step " not in line]
    why = ["failed", "ValueError:", "no", "luck"]
    first, second = (folder.name for folder in job.dirs)
    assert said == [[first, *why], [second, *why], [first, "done"], [second, *why]]


def test_a_stack_without_progress_is_tried_run_by_run(jobs: Any) -> None:
    job = jobs(*LONG, *STACKED)
    for restart, idle in ((1, 0), (2, 1)):
        process = job.start(restart)
        until(lambda idle=idle: job.notes().get("idle") == idle, process)
        process.kill()
        process.wait()
    code, output = job.run(3)
    assert code == 0
    assert job.statuses() == ["done", "done"]
    assert output.count("failed  no progress within the time limit of 7 minutes in 3 starts") == 2
    ends = [line.split()[1] for line in output.splitlines() if line.endswith("done")]
    assert ends == [folder.name for folder in job.dirs]  # and not in step


def test_missing_token_files_are_named_with_the_setting_that_mends_it(jobs: Any) -> None:
    job = jobs()
    code, _ = job.run(corpora={key: "/nowhere/corpora/x" for key in job.frozen.corpora})
    assert code == 1
    for folder in job.dirs:
        error = (read_status(folder) or {})["error"]
        assert error.startswith("no token files at /nowhere/corpora/x on ")
        assert "data.cache_dir" in error
        assert "ISOLOSS_CACHE" in error
