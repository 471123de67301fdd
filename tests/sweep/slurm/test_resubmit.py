"""Which runs are submitted again, and with which settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sweep.compose import compose
from sweep.config import read_config
from sweep.launch.slurm.resubmit import failed_or_lost, last_settings
from sweep.launch.slurm.submission import Submission, write_submission
from sweep.schema import InputError
from sweep.status import Job, RunStatus, SweepStatus


def run(number: int, **fields: Any) -> RunStatus:
    return RunStatus(f"{number:016x}", 1, 8, 128, 1e-3, 0, 10, **{"planned": True, **fields})


def test_only_failed_and_lost_runs_are_submitted_again() -> None:
    gone, live = Job("7", 1, live=False), Job("8", 1, live=True)
    runs = [
        run(0, status="failed", job=gone),
        run(1, status="running", job=gone),
        run(2, job=gone),
        run(3, job=gone, cancelled=True),
        run(4, status="done", job=gone),
        run(5, status="diverged", job=gone),
        run(6, job=live),
        run(7, status="failed", submission=1, job=live),  # its job tries again, or has others to train
        run(8),
        run(9, status="failed", job=gone, planned=False),
    ]
    assert failed_or_lost(SweepStatus("s", 9, runs, 0.0, 1.0)) == [f"{number:016x}" for number in range(3)]
    with pytest.raises(InputError, match="squeue is not found"):
        failed_or_lost(SweepStatus("s", 9, runs, 0.0, 1.0, slurm_problem="squeue is not found on this machine"))


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    """A sweep that was submitted twice."""
    (tmp_path / "slurm").mkdir()
    for number, partition in ((1, "long"), (2, "short")):
        overrides = ["launcher=slurm", f"launcher.partition={partition}", "launcher.setup=[module load cuda]"]
        config = read_config(compose("sweep", ["experiment=smoke", *overrides]))
        settings = {"launcher": asdict(config.launcher), "tracking": asdict(config.tracking)}
        write_submission(tmp_path, Submission(number, "", (), (), 2, {}, {}, settings))
    return tmp_path


def test_settings_are_those_of_the_last_submission(sweep_dir: Path) -> None:
    launcher, tracking = last_settings(sweep_dir, [])
    assert (launcher.partition, launcher.setup, launcher.memory_gb) == ("short", ("module load cuda",), None)
    assert tracking.name == "none"


def test_settings_of_the_launcher_can_be_changed(sweep_dir: Path) -> None:
    changes = [
        "launcher.partition=null",
        "launcher.memory_gb=12.5",
        "launcher.sbatch={exclude: node7}",
        "launcher.sbatch.nice=5",
    ]
    launcher, _ = last_settings(sweep_dir, changes)
    assert (launcher.partition, launcher.memory_gb, launcher.sbatch) == (None, 12.5, {"exclude": "node7", "nice": 5})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("batch_tokens=3", "only launcher.KEY=VALUE"),
        ("launcher.name=local", "only launcher.KEY=VALUE"),
        ("launcher.partition", "launcher.partition cannot be read"),
        ("~launcher.partition", "only launcher.KEY=VALUE"),
        ("launcher.partition=a,b", "only launcher.KEY=VALUE"),
        ("launcher.partitoin=x", "did you mean partition?"),
        ("launcher.nodes=none", "launcher.nodes must be int"),
        ("launcher.nodes=0", "launcher.nodes must be positive"),
        ("launcher.sbatch={", "launcher.sbatch={ cannot be read"),
    ],
)
def test_other_changes_are_refused_in_one_line(sweep_dir: Path, override: str, says: str) -> None:
    with pytest.raises(InputError) as refusal:
        last_settings(sweep_dir, [override])
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_a_submission_there_is_nothing_to_repeat(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no job was ever submitted"):
        last_settings(tmp_path, [])
