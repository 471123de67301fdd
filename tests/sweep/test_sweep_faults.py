"""Sweeps that cannot work, that are started twice, and on a file system without locks; a single run that goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Commands, finish, until
from faults import without_locks

from sweep.holder import Holder
from sweep.launch.freeze import has_result
from sweep.lease import newest_number
from sweep.record import read_record, read_status
from sweep.schema import MANIFEST_FILE, METRICS_FILE, RUNS_DIR
from sweep.status import sweep_status
from sweep.stored import last_evaluation


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


def test_of_two_sweeps_started_at_once_one_trains_and_the_other_is_refused(commands: Commands) -> None:
    sweeps = [commands.start("sweep", *commands.sweep_arguments()) for _ in range(2)]
    outcomes = [finish(process) for process in sweeps]
    codes = [code for code, _, _ in outcomes]
    assert sorted(codes) == [0, 2], outcomes
    refused, trained = codes.index(2), codes.index(0)
    assert re.fullmatch(rf"isoloss: sweep .* is in use by process {sweeps[trained].pid} on .*\n", outcomes[refused][2])
    runs = list((commands.folder / "out" / RUNS_DIR).iterdir())
    assert len(runs) == 2
    for run_dir in runs:
        assert (read_status(run_dir) or {})["attempts"] == 1
        assert has_result(run_dir)
        lines = (run_dir / METRICS_FILE).read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize(("stack", "others"), [("off", 0), ("on", 1)])
def test_a_sweep_whose_first_runs_fail_alike_stops_and_says_why(commands: Commands, stack: str, others: int) -> None:
    more = ("grid.blocks.run.product.batch_tokens=[128]", "+grid.blocks.run.product.seed=[0,1,2,3,4]",
            "data.max_epochs=100", f"launcher.stack={stack}")  # fmt: skip
    out = commands.folder / "out"
    for run in commands.plan(*more):
        (out / RUNS_DIR / run.run_id / METRICS_FILE).mkdir(parents=True)  # a folder where the record wants a file
    code, said, err = commands.sweep(*more, "launcher.stop_after=2", "launcher.retries=1")
    assert code == 1
    assert re.fullmatch(
        r"isoloss: the first 2 runs that ended have all failed with: IsADirectoryError: .*metrics\.jsonl'; .*\n", err
    )
    state = sweep_status(out)
    counts = {"failed": 5} if others else {"planned": 3, "failed": 2}
    assert state.counts == _counts(said) == counts
    assert sorted(run.attempts for run in state.runs) == [others, others, others, 2, 2]  # one by one at the second

    for run in state.runs:
        (out / RUNS_DIR / run.run_id / METRICS_FILE).rmdir()
    code, said, err = commands.sweep(*more, "launcher.stop_after=2", "launcher.retries=1")
    assert (code, err) == (0, "")
    assert _counts(said) == {"done": 5}
    assert all((read_status(out / RUNS_DIR / run.run_id) or {})["failures"] == 0 for run in state.runs)


def _counts(said: str) -> dict[str, int]:
    last = [line for line in said.splitlines() if not line.startswith("next:")][-1]
    return {status: int(count) for count, status in re.findall(r"(\d+) (\w+)", last.rpartition(": ")[2])}


def test_a_refused_first_sweep_leaves_nothing(commands: Commands) -> None:
    code, _, err = commands.sweep("data.max_epochs=0.001")
    assert code == 2
    assert "max_epochs" in err
    assert {path.name for path in commands.folder.iterdir()} == {"conf"}


def test_a_file_system_without_locks_serves(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> None:
    env = without_locks(commands.folder, tmp_path_factory.mktemp("build"))
    locks = "import fcntl, sys\nfcntl.{}(open(sys.argv[1], 'w'), fcntl.LOCK_EX)"
    for kind in ("flock", "lockf"):  # it does fail there
        command = [sys.executable, "-c", locks.format(kind), str(commands.folder / "probe")]
        probe = subprocess.run(command, env=commands.env | env, capture_output=True, text=True)
        assert "No locks available" in probe.stderr
    sweep = commands.start("sweep", *commands.sweep_arguments(), **env)
    out = commands.folder / "out"
    until(lambda: (out / "lease.1").exists() and (out / "lease.1").read_text(), sweep)
    code, _, err = commands.run("sweep", *commands.sweep_arguments(), **env)
    assert code == 2
    assert f"in use by process {sweep.pid}" in err
    assert finish(sweep)[0] == 0
    assert sweep_status(out).counts == {"done": 2}


def test_the_runs_of_a_killed_worker_go_on_one_by_one(commands: Commands) -> None:
    more = "grid.blocks.run.product.batch_tokens=[128,256,512]", "horizon.steps=400", "data.max_epochs=100"
    sweep = commands.start("sweep", *commands.sweep_arguments(*more))
    runs = commands.folder / "out" / RUNS_DIR
    folders = [runs / run.run_id for run in commands.plan(*more)]
    until(lambda: all((last_evaluation(folder) or {}).get("step", 0) > 10 for folder in folders), sweep)
    holders = [Holder.read((folder / f"lease.{newest_number(folder)}").read_text()) for folder in folders]
    assert holders[0] is not None
    assert holders == [holders[0]] * 3
    os.kill(holders[0].pid, signal.SIGKILL)
    code, out, err = finish(sweep)
    assert (code, err) == (0, ""), out
    assert "3 runs (3 in 1 stack)\n1 worker on cpu" in out
    for folder in folders:
        assert f"run {folder.name} failed and is tried again: worker killed by signal 9" in out
        status = read_status(folder) or {}
        assert (status["status"], status["attempts"], status["failures"]) == ("done", 2, 1)


def test_a_run_of_its_own_that_was_stopped_goes_on_as_it_began(commands: Commands) -> None:
    text = Path(json.__file__).parent
    arguments = ["model.n_ctx=16", "model.d_head=8", "model.shape=1x8", "horizon.steps=4000", "batch_tokens=128",
                 "schedule.warmup_steps=2", "data=text", f"data.files=['{text}/*.py']", "data.name=json",
                 "data.test_tokens=512", "data.max_epochs=100", "tracking=none", "sweep_dir=out",
                 "launcher.device=cpu"]  # fmt: skip
    first = commands.start("train", *arguments, "execution.micro_batch=4")
    runs = commands.folder / "out" / RUNS_DIR
    (run_dir,) = until(lambda: list(runs.iterdir()) if runs.is_dir() else [], first)
    until(lambda: (last_evaluation(run_dir) or {}).get("step", 0) >= 50, first)
    first.send_signal(signal.SIGINT)
    code, out, err = finish(first)
    assert (code, err) == (0, "")
    assert re.search(rf"^{run_dir.name}  interrupted  test loss .*; the same command goes on with it$", out, re.M)
    code, out, err = commands.run("train", *arguments, "launcher.threads=2", "execution.micro_batch=2")
    assert code == 0, err
    assert f"{run_dir.name}  done" in out
    record = read_record(run_dir)
    assert (record.status["status"], record.status["attempts"]) == ("done", 2)
    execution = json.loads((run_dir / MANIFEST_FILE).read_text())["execution"]
    assert (execution["threads"], execution["micro_batch"]) == (1, 4)
    assert record.status["micro_batch"] == 4
