"""What a person at a login node reads: costs of a plan, commands to paste, one line for a failed job."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sweep.cli import main
from sweep.verbs.common import RunsFailed, quoted
from sweep.verbs.training import train


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["launcher.gpus_per_run=0"], "1 job of at most 8 minutes, about 0.017 CPU-hours"),
        (
            ["launcher.gpus_per_run=2", "launcher.pack_minutes=0.0001"],
            "8 jobs of at most 8 minutes, about 0.27 GPU-hours",
        ),
        (["launcher.gpus_per_run=2", "launcher.time_limit_minutes=30"], "1 job of at most 30 minutes"),
    ],
)
def test_a_plan_says_which_jobs_it_would_be(
    overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "experiment=smoke", "launcher=slurm", *overrides]) == 0
    assert says in capsys.readouterr().out.splitlines()[-1]


def test_a_folder_in_a_printed_command_is_one_word_of_a_shell() -> None:
    folder = Path("my sweeps/it's $(here)")
    assert shlex.split(f"isoloss status {quoted(folder)}") == ["isoloss", "status", str(folder)]
    assert quoted(Path("sweeps/first")) == "sweeps/first"


def test_a_failed_job_of_hydras_launcher_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core.utils import UncompletedJobError

    from sweep.launch import single

    said = (
        "Job 9_0 (task: 0) with path x/9_0_0_result.pkl\nhas not produced any output (state: FAILED)\n"
        "Error stream produced:\n----\nisoloss: schedule: too long; shorten it\nsrun: error: node1: task 0: Exited"
    )

    def fail() -> None:
        raise UncompletedJobError(said)

    monkeypatch.setattr(single, "main", fail)
    with pytest.raises(RunsFailed) as failed:
        train(["-m"])
    assert str(failed.value) == "Job 9_0 (task: 0) with path x/9_0_0_result.pkl: schedule: too long; shorten it"
