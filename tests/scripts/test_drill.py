"""The drills notice what they are there to notice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from drills.lab import Result, compare_runs

DRILL = Path(__file__).parents[2] / "scripts" / "drill.py"


def record(folder: Path, steps: tuple[int, ...]) -> Path:
    """A run's curve, of which the clock is not part."""
    folder.mkdir()
    rows = [{"step": step, "test_loss": 3 - step / 100, "elapsed_s": float(step)} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(folder / "steps.npz", train_loss=np.linspace(3, 2, 30, dtype=np.float32))
    return folder


def compared(undisturbed: Path, run: Path) -> tuple[int, int, int]:
    result = Result("fault", injected=1, runs=1, finished=1)
    compare_runs(undisturbed, run, result)
    counts = result.lost, result.duplicated, result.differing
    assert result.passed is (counts == (0, 0, 0))
    return counts


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one = record(tmp_path / "one", (10, 20, 30))
    return one, Path(shutil.copytree(one, tmp_path / "other"))


def edit(run: Path, line: int, **changes: Any) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | changes)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_only_the_clock_may_differ(runs: tuple[Path, Path]) -> None:
    edit(runs[1], 1, elapsed_s=99.0)
    assert compared(*runs) == (0, 0, 0)


def test_a_row_lost(runs: tuple[Path, Path]) -> None:
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert compared(*runs) == (1, 0, 0)


def test_a_row_twice(runs: tuple[Path, Path]) -> None:
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + metrics.read_text().splitlines(keepends=True)[-1])
    assert compared(*runs) == (0, 1, 0)


def test_one_bit_of_a_row(runs: tuple[Path, Path]) -> None:
    edit(runs[1], 2, test_loss=float(np.nextafter(2.7, 3)))
    assert compared(*runs) == (0, 0, 1)


def test_one_bit_of_a_step(runs: tuple[Path, Path]) -> None:
    losses = np.load(runs[1] / "steps.npz")["train_loss"]
    losses[7] = np.nextafter(losses[7], np.float32(9))
    np.savez(runs[1] / "steps.npz", train_loss=losses)
    assert compared(*runs) == (0, 0, 1)


def test_rows_out_of_order(runs: tuple[Path, Path]) -> None:
    metrics = runs[1] / "metrics.jsonl"
    metrics.write_text("".join(reversed(metrics.read_text().splitlines(keepends=True))))
    assert compared(*runs) == (0, 0, 1)


def test_a_fault_that_did_not_happen_proves_nothing() -> None:
    assert not Result("fault", injected=0, runs=1, finished=1).passed
    assert not Result("fault", injected=1, runs=2, finished=1).passed
    assert not Result("fault", injected=1, runs=1, finished=1, wrong=["said nothing"]).passed


def test_a_drill_from_the_command_line(tmp_path: Path) -> None:
    """One kill, for real: the table, the JSON file and the exit code."""
    file = tmp_path / "drill.json"
    command = [sys.executable, str(DRILL), "--only", "kills", "--kills", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9 of a training process" in done.stdout
    [result] = json.loads(file.read_text())
    assert (result["injected"], result["runs"], result["finished"]) == (1, 2, 2)
    assert (result["lost"], result["duplicated"], result["differing"]) == (0, 0, 0)
