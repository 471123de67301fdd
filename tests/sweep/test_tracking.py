"""The W&B mirror, on real offline runs read back with W&B's own reader (`wandb leet inspect`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands

from sweep.cli import main
from sweep.config import TrackingConfig
from sweep.corpus import prepare
from sweep.launch.attempt import Ended, Evaluated, Job, Task, train_job
from sweep.record import read_record, read_status, read_steps, write_status
from sweep.schema import RUNS_DIR
from sweep.spec import PlannedRun
from sweep.tracking import Mirror, sync
from sweep.wandb_run import STEP_ROWS, Destination, has_key, step_rows

OFFLINE = TrackingConfig(name="wandb", project="trial", entity=None, mode="offline")
NONE = TrackingConfig(name="none", project="trial", entity=None, mode="offline")
HERE = Destination("trial", None, "offline")
KEY = "0123456789abcdef" * 3


class Runs:
    """Trains the trial experiment's runs in this process, the first one alone unless asked."""

    def __init__(self, folder: Path) -> None:
        self.plan = Commands(folder, folder / "unused").plan("launcher.threads=1")
        self.planned: PlannedRun = self.plan[0]
        self.sweep_dir = folder / "group-of-the-sweep"
        self.run_dir = self.sweep_dir / RUNS_DIR / self.planned.run_id
        self.said: list[str] = []

    def train(self, tracking: TrackingConfig = OFFLINE, stop_at: int | None = None) -> str:
        """Train or resume the run; ask it to stop at its first evaluation from step `stop_at` on. Returns its
        status."""

        def hear(message: Evaluated | Ended) -> None:
            if stop_at is not None and isinstance(message, Evaluated) and message.row["step"] >= stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        corpus = prepare(self.planned.spec.data, self.planned.source)
        job = Job((Task(self.planned, self.run_dir),), corpus.path)
        (ended,) = train_job(job, "cpu", Mirror(tracking, self.said.append), hear)
        return ended.status

    def train_stack(self) -> None:
        """Train all runs as one stack."""
        corpus = prepare(self.planned.spec.data, self.planned.source)
        tasks = tuple(Task(run, self.run_dir.with_name(run.run_id)) for run in self.plan)
        train_job(Job(tasks, corpus.path), "cpu", Mirror(OFFLINE, self.said.append), lambda message: None)

    def folder(self, run_id: str = "") -> Path:
        """The one offline run there is, or that of a run."""
        (folder,) = (self.sweep_dir / "wandb").glob(f"offline-run-*{run_id}")
        return folder


@pytest.fixture
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return Runs(tmp_path)


def inspect(folder: Path, *flags: str) -> str:
    """What W&B reads in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(folder)]
    env = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=60).stdout


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline run's history."""
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def assert_mirrors(folder: Path, run_dir: Path) -> None:
    """The offline run in `folder` holds the whole record in `run_dir`, every row once and in order."""
    rows, record = history(folder), read_record(run_dir)
    evaluations = [{key: row[key] for key in record.rows[0]} for row in rows if "test_loss" in row]
    assert evaluations == record.rows
    steps = [row for row in rows if "train/step" in row]
    assert [row["train/step"] for row in steps] == list(range(1, record.spec.steps + 1))
    np.testing.assert_array_equal(np.float32([row["train/loss"] for row in steps]), read_steps(run_dir)["train_loss"])
    assert [row["_step"] for row in rows] == list(range(len(rows)))


def whole(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without empty mappings, which W&B leaves out."""
    inner = {key: whole(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in inner.items() if value != {}}


def test_a_live_mirror_holds_the_record(runs: Runs) -> None:
    assert runs.train() == "done"
    assert runs.said == []
    assert_mirrors(runs.folder(), runs.run_dir)
    summary = json.loads(inspect(runs.folder(), "--summary"))
    assert summary["run_id"] == runs.planned.run_id
    assert summary["project"] == "trial"
    assert summary["exit_code"] == 0
    manifest = {"manifest": json.loads((runs.run_dir / "manifest.json").read_text())}
    assert whole(summary["config"]) == whole(json.loads(json.dumps(runs.planned.to_dict())) | manifest)
    last = read_record(runs.run_dir).rows[-1]
    assert summary["summary"]["test_loss"] == last["test_loss"]
    assert summary["summary"]["status"] == "done"
    assert summary["summary"]["params"] == runs.planned.costs["params"]
    started = next(json.loads(line)["run"] for line in inspect(runs.folder()).splitlines() if '"type":"run"' in line)
    assert started["run_group"] == "group-of-the-sweep"


def test_each_run_of_a_stack_has_its_own_live_mirror(runs: Runs) -> None:
    runs.train_stack()
    assert runs.said == []
    assert len(runs.plan) == 2
    for planned in runs.plan:
        assert_mirrors(runs.folder(planned.run_id), runs.run_dir.with_name(planned.run_id))
    again = sync(runs.sweep_dir, HERE, runs.said.append)
    assert (again.written, sorted(again.current)) == ([], sorted(run.run_id for run in runs.plan))


def test_no_key_gets_into_what_is_written(runs: Runs) -> None:
    runs.train()
    written = [path for path in runs.sweep_dir.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_a_resumed_run_has_one_whole_mirror(runs: Runs) -> None:
    assert runs.train(stop_at=10) == "running"
    part = history(runs.folder())
    assert 0 < part[-1]["step"] < runs.planned.spec.steps
    assert runs.train() == "done"
    assert_mirrors(runs.folder(), runs.run_dir)


def test_sync_writes_what_is_missing_once(runs: Runs) -> None:
    assert runs.train(NONE, stop_at=10) == "running"
    assert not (runs.sweep_dir / "wandb").exists()
    assert sync(runs.sweep_dir, HERE, runs.said.append).written == [runs.planned.run_id]
    assert len(history(runs.folder())) == len(read_record(runs.run_dir).rows)

    assert runs.train(NONE) == "done"
    assert sync(runs.sweep_dir, HERE, runs.said.append).written == [runs.planned.run_id]
    assert_mirrors(runs.folder(), runs.run_dir)

    before = runs.folder()
    again = sync(runs.sweep_dir, HERE, runs.said.append)
    assert (again.written, again.current) == ([], [runs.planned.run_id])
    assert runs.folder() == before


def test_sync_finds_a_live_mirror_complete(runs: Runs) -> None:
    runs.train()
    assert sync(runs.sweep_dir, HERE, runs.said.append).current == [runs.planned.run_id]
    other = sync(runs.sweep_dir, Destination("elsewhere", None, "offline"), runs.said.append)
    assert other.written == [runs.planned.run_id]


def test_sync_names_a_damaged_record_and_mirrors_the_rest(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.train(NONE)
    shutil.copytree(runs.run_dir, runs.run_dir.with_name("0123456789abcdef"))
    (runs.run_dir.with_name("0123456789abcdef") / "spec.json").write_text('{"run_id": "x"')
    assert main(["sync", str(runs.sweep_dir), "--project", "trial", "--mode", "offline"]) == 0
    captured = capsys.readouterr()
    assert "0123456789abcdef/spec.json" in captured.err
    assert "1 runs written" in captured.out
    assert_mirrors(runs.folder(), runs.run_dir)


def test_sync_says_that_the_steps_of_a_run_cannot_be_read(runs: Runs) -> None:
    runs.train(NONE)
    steps = runs.run_dir / "steps.npz"
    whole_steps = steps.read_bytes()
    steps.write_bytes(whole_steps[:-30])
    for _ in range(2):  # as long as it is so
        found = sync(runs.sweep_dir, HERE, runs.said.append)
        assert (found.written, found.current) == ([runs.planned.run_id], [])
        assert len(found.damaged) == 1
        assert str(steps) in found.damaged[0]
    assert len(history(runs.folder())) == len(read_record(runs.run_dir).rows)
    steps.write_bytes(whole_steps)
    assert sync(runs.sweep_dir, HERE, runs.said.append).damaged == []
    assert_mirrors(runs.folder(), runs.run_dir)


def test_a_run_that_ended_before_its_first_steps_were_written_lacks_nothing(runs: Runs) -> None:
    runs.train(NONE)
    (runs.run_dir / "steps.npz").unlink()
    write_status(runs.run_dir, "out_of_memory")
    assert sync(runs.sweep_dir, HERE, runs.said.append).damaged == []
    write_status(runs.run_dir, "done")
    assert "steps.npz" in sync(runs.sweep_dir, HERE, runs.said.append).damaged[0]


def test_a_mirror_that_cannot_be_written_never_hurts_the_run(runs: Runs) -> None:
    runs.sweep_dir.mkdir()
    (runs.sweep_dir / "wandb").write_text("a file where W&B wants a folder")
    assert runs.train() == "done"
    assert (read_status(runs.run_dir) or {})["status"] == "done"
    assert len(runs.said) == 1
    assert "isoloss sync" in runs.said[0]


def test_long_runs_are_averaged_over_equal_buckets(runs: Runs) -> None:
    runs.run_dir.mkdir(parents=True)
    loss = np.arange(2 * STEP_ROWS, dtype=np.float32)
    np.savez(runs.run_dir / "steps.npz", train_loss=loss, lr=loss / 2, grad_norm=loss * 3)
    rows = step_rows(runs.run_dir)
    assert len(rows) == STEP_ROWS
    assert rows[0] == {"train/step": 2, "train/loss": 0.5, "train/lr": 0.25, "train/grad_norm": 1.5}
    assert rows[-1]["train/step"] == 2 * STEP_ROWS


def test_a_key_is_found_in_the_environment_or_for_the_server_in_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert not has_key()
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    netrc.chmod(0o600)
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key()


def test_sync_says_in_one_line_that_the_server_does_not_answer(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.train(NONE)
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:planted0@127.0.0.1:9")
    monkeypatch.setattr("sweep.wandb_run.NETWORK_SECONDS", 1.0)
    assert main(["sync", str(runs.sweep_dir), "--mode", "online"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("isoloss: W&B: ")
    assert line.endswith("; try again later, or with --mode offline")
    assert "planted0" not in line


def test_auto_is_online_only_with_a_key_and_a_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = TrackingConfig(name="wandb", project="p", entity=None, mode="auto")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert Destination.from_config(auto).mode == "online"
    assert Destination.from_config(auto).mode == "offline"  # nobody listens any more
