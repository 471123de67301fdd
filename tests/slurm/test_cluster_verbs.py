"""The command on a real cluster: sweep and its waiting, status, cancel, resubmit, logs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drills.cluster import Cluster, wait_until
from drills.lab import Lab
from launching import SLURM, lab_in

from sweep.launch.slurm.submission import elements_of_runs, read_submissions
from sweep.lease import is_held, newest_number
from sweep.plan import read_plan
from sweep.schema import CHECKPOINT_DIR, PLAN_FILE, RUNS_DIR

ENDLESS = "horizon.steps=100000"  # minutes; the tests end them
PACKED = "launcher.pack_minutes=1000"  # all runs in one job


class Command:
    """`isoloss` on one sweep directory."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.directory = lab, lab.folder / name
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """Start `isoloss VERB` on the sweep directory."""
        given = [str(self.directory), *arguments]
        if verb == "sweep":
            given = ["--config-dir", str(self.lab.configs), "experiment=drill", f"sweep_dir={self.directory}",
                     *SLURM, *arguments]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "sweep.cli", verb, *given],
            cwd=self.lab.folder,
            text=True,
            env=self.lab.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # which a shell's job in the background ignores, and hands on
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """End what is left of its processes and jobs."""
        for process in self.processes:
            process.kill()
        if jobs := [element.job_id for one in read_submissions(self.directory) for element in one.elements]:
            subprocess.run(["scancel", *jobs])

    def __call__(self, verb: str, *arguments: str, code: int = 0) -> str:
        """What `isoloss VERB` prints; fails where it does not end with exit code `code`."""
        process = self.start(verb, *arguments)
        out, err = process.communicate(timeout=180)
        assert process.returncode == code, out + err
        return out + err

    def states(self) -> dict[str, dict[str, Any]]:
        """run_id -> what `isoloss status --json -` says of the run."""
        return {run["run_id"]: run for run in json.loads(self("status", "--json", "-"))["runs"]}

    def shown(self) -> list[str]:
        """States of the runs in the plan's order."""
        states = self.states()
        return [states[run.run_id]["shown"] for run in read_plan(self.directory / PLAN_FILE)]

    def run_dirs(self) -> list[Path]:
        """Run directories in the plan's order."""
        return [self.directory / RUNS_DIR / run.run_id for run in read_plan(self.directory / PLAN_FILE)]

    def until(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the states of the runs fulfil `condition`."""
        seen: list[str] = []

        def look() -> bool:
            seen[:] = self.shown()
            return condition(seen)

        wait_until(look, f"states of {self.directory.name}")
        return seen


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("verbs"))


@pytest.fixture
def isoloss(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Command]:
    """The command on a sweep directory of the test's own."""
    command = Command(lab, request.node.name)
    yield command
    command.end()


def test_runs_and_sweeps_are_cancelled_and_taken_up_again(cluster: Cluster, isoloss: Command) -> None:
    seeds = "grid.blocks.run.product.seed=[0,1,2]"
    waiting = isoloss.start("sweep", ENDLESS, seeds, "launcher.wait=true")
    assert waiting.stdout is not None
    said = [waiting.stdout.readline() for _ in range(4)]
    assert said[0] == "submitted 3 runs in 3 jobs\n"
    array = re.fullmatch(r"  job (\d+), an array of 3\n", said[1])[1]  # type: ignore[index]
    assert re.match(
        r"time limit \d+ minutes, launcher.time_margin 2 times 2m \d\ds, estimated for the longest job", said[2]
    )
    assert said[3] == f"next: isoloss status {isoloss.directory}\n"

    isoloss.until(lambda shown: "running" in shown)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert re.match("isoloss: no longer watched, the jobs go on: .*isoloss cancel", err)
    assert err.count("\n") == 1
    assert cluster.queued(array) is not None

    one, *others = [run_dir.name for run_dir in isoloss.run_dirs()]
    isoloss.until(lambda shown: shown[0] == "running" and any((isoloss.run_dirs()[0] / CHECKPOINT_DIR).glob("*.json")))
    assert isoloss("cancel", one[:8]).endswith("1 job and 1 run cancelled\n")
    shown = isoloss.until(lambda shown: shown[0] == "cancelled")
    assert set(shown[1:]) <= {"running", "queued"}
    assert isoloss.states()[others[0]]["job"]["live"] is True

    assert "jobs and 2 runs cancelled" in isoloss("cancel")
    isoloss.until(lambda shown: shown == ["cancelled"] * 3)
    wait_until(lambda: cluster.queued(array) in (None, "COMPLETED"), "end of the array")
    assert f"{one}: nothing to cancel" in isoloss("cancel", one)
    assert "0 jobs and 0 runs cancelled" in isoloss("cancel")
    assert "no run has failed or is lost\n3 runs cancelled" in isoloss("resubmit")
    assert any((isoloss.run_dirs()[0] / CHECKPOINT_DIR).glob("*.json"))  # it can be gone on with

    assert "submitted 3 runs in 1 job" in isoloss("sweep", ENDLESS, seeds, PACKED)
    assert "the jobs that live have all 3 runs" in isoloss("sweep", ENDLESS, seeds)
    isoloss.until(lambda shown: sorted(shown) == ["queued", "queued", "running"])
    (current,) = (run_dir.name for run_dir in isoloss.run_dirs() if is_held(run_dir))
    assert "its job goes on with other runs\n" in isoloss("cancel", current)
    isoloss.until(lambda shown: sorted(shown) == ["cancelled", "queued", "running"])
    assert isoloss.states()[current]["shown"] == "cancelled"
    assert "1 job and 2 runs cancelled" in isoloss("cancel")


def test_failed_and_lost_runs_are_seen_with_their_reason_and_submitted_again(lab: Lab, isoloss: Command) -> None:
    seeds = "grid.blocks.run.product.seed=[0,1,2]"
    overrides = ["horizon.steps=2500", seeds, "launcher.retries=0", "launcher.stop_after=9"]
    planned = json.loads(isoloss_plan(lab, *overrides))["runs"]
    good, failing, lost = (isoloss.directory / RUNS_DIR / run["run_id"] for run in planned)
    (failing / "metrics.jsonl").mkdir(parents=True)  # a folder where the record wants a file
    waiting = isoloss.start("sweep", *overrides, "launcher.wait=true")
    job = wait_until(lambda: job_of(isoloss, lost.name), "job of the run to lose")
    wait_until(lambda: is_held(lost), "start of the run to lose")
    wait_until(lambda: any((lost / CHECKPOINT_DIR).glob("*.json")), "checkpoint of the run to lose")
    os.kill(json.loads((lost / f"lease.{newest_number(lost)}").read_text())["pid"], signal.SIGKILL)
    out, err = waiting.communicate(timeout=180)
    assert waiting.returncode == 1, out + err
    assert re.search(r"isoloss: 2 of 3 runs failed, the first \w{16}: .*; the same command tries them again", err)
    assert re.search(rf"{good.name} .* done .* loss \d\.\d+", out)
    assert "%|" not in out  # no bar without a terminal
    assert isoloss.shown() == ["done", "failed", "lost"]
    table = isoloss("status")
    assert re.search(rf"{failing.name} .*failed.*IsADirectoryError", table)
    assert re.search(rf"{lost.name} .*lost.* {job} FAILED", table)
    assert f"isoloss resubmit {isoloss.directory} submits 2 again" in table

    shown = isoloss("logs", failing.name[:6])
    assert "failed, 1 attempt" in shown
    assert "Traceback (most recent call last)" in shown
    assert shown.rstrip().splitlines()[-1].startswith("IsADirectoryError")
    log = re.search(r"^  (/.*_log\.out)$", shown, re.MULTILINE)
    assert log is not None
    assert Path(log[1]).read_text().rstrip().splitlines()[-1] in shown
    assert "is no run of this sweep" in isoloss("logs", "../../etc", code=2)

    (failing / "metrics.jsonl").rmdir()
    assert "launcher.time_limit_minute;" in isoloss("resubmit", "launcher.time_limit_minute=9", code=2)
    said = isoloss("resubmit", "launcher.time_limit_minutes=9", PACKED)
    assert "submitted 2 runs in 1 job" in said
    assert "time limit 9 minutes, as launcher.time_limit_minutes says" in said
    isoloss.until(lambda shown: shown == ["done"] * 3)
    assert [run["attempts"] for run in isoloss.states().values()] == [1, 2, 2]
    shown = isoloss("logs", lost.name, "--lines", "0")
    jobs = [line.split()[1] for line in shown.splitlines() if line.startswith("job ")]
    assert jobs == [job, job_of(isoloss, lost.name)]
    assert f"{isoloss.directory}: all 3 runs have results" in isoloss("sweep", *overrides)


def isoloss_plan(lab: Lab, *overrides: str) -> str:
    """What `isoloss plan --json -` prints of the experiment."""
    given = ["plan", "--config-dir", str(lab.configs), "experiment=drill", *SLURM, *overrides, "--json", "-"]
    command = [sys.executable, "-m", "sweep.cli", *given]
    return subprocess.run(command, env=lab.env, capture_output=True, text=True, check=True).stdout


def job_of(isoloss: Command, run_id: str) -> str | None:
    """The last job of a run, once it has one."""
    elements = elements_of_runs(read_submissions(isoloss.directory)).get(run_id)
    return elements[-1].job_id if elements else None
