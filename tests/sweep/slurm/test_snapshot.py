"""The snapshot holds the code that was planned; it wins over the checkout and says which commit it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep.manifest import PACKAGED, code_root

TAKE = """
import json, sys
from pathlib import Path
from sweep.launch.slurm.snapshot import take_snapshot
from sweep.schema import InputError
try:
    print(json.dumps(take_snapshot(Path(sys.argv[1]), sys.argv[2] == "dirty")))
except InputError as error:
    print(json.dumps(str(error)))
"""
WHERE = "import json, sweep.manifest as m; print(json.dumps([m.__file__, m.code_version()]))"


def run_python(code: str, root: Path, *words: str, cwd: Path | None = None) -> Any:
    """What Python `code` prints as JSON where the packages come from `root`, as in a job."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "PATH": "/usr/bin:/bin"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout of this code, as a repository of its own."""
    root = tmp_path / "check out"
    for package in PACKAGED:
        shutil.copytree(code_root() / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "README.md").write_text("read me\n")
    (root / ".gitignore").write_text("__pycache__\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


def test_snapshot_of_a_clean_checkout_is_found_again(checkout: Path, tmp_path: Path) -> None:
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    sweep_dir = tmp_path / "sweep"
    first = run_python(TAKE, checkout, str(sweep_dir), "clean")
    assert first["sha"] == sha
    assert first["dirty"] is False
    assert run_python(TAKE, checkout, str(sweep_dir), "clean") == first
    assert [path.name for path in (sweep_dir / "code").iterdir()] == [first["hash"]]
    for name in ("sweep/train.py", "configs/base.yaml", "analysis/report/page.html"):
        if (checkout / name).exists():
            assert (Path(first["path"]) / name).read_bytes() == (checkout / name).read_bytes()
    assert not list(Path(first["path"]).rglob("__pycache__"))


@pytest.mark.parametrize("change", ["sweep/train.py", "README.md", "sweep/new.py"])
def test_a_dirty_checkout_is_refused_unless_allowed(checkout: Path, tmp_path: Path, change: str) -> None:
    with (checkout / change).open("a") as file:
        file.write("# changed\n")
    said = run_python(TAKE, checkout, str(tmp_path / "sweep"), "clean")
    assert "uncommitted changes" in said
    assert "launcher.allow_dirty=true" in said
    assert not (tmp_path / "sweep").exists()
    code = run_python(TAKE, checkout, str(tmp_path / "sweep"), "dirty")
    assert code["dirty"] is True
    if change.startswith("sweep"):
        assert "# changed" in (Path(code["path"]) / change).read_text()


def test_the_command_refuses_a_dirty_checkout_before_it_writes(checkout: Path, tmp_path: Path) -> None:
    (checkout / "README.md").write_text("changed\n")
    sweep_dir = tmp_path / "sweep"
    call = (
        "import json, sys; from sweep.cli import main; code = main(sys.argv[1:]); "
        "print(json.dumps([code, sys.modules['sweep'].__file__]))"
    )
    words = "sweep", "experiment=smoke", "launcher=slurm", "launcher.gpus_per_run=0", f"sweep_dir={sweep_dir}"
    code, file = run_python(call, checkout, *words)
    assert (code, Path(file).parent) == (2, checkout / "sweep")
    assert not sweep_dir.exists()


def test_files_that_are_no_code_do_not_make_a_checkout_dirty(checkout: Path, tmp_path: Path) -> None:
    (checkout / "notes.txt").write_text("mine\n")
    (checkout / "sweeps").mkdir()
    (checkout / "sweeps" / "x.py").write_text("mine\n")
    assert run_python(TAKE, checkout, str(tmp_path / "sweep"), "clean")["dirty"] is False


def test_snapshot_wins_over_the_installation_and_the_working_directory(checkout: Path, tmp_path: Path) -> None:
    code = run_python(TAKE, checkout, str(tmp_path / "sweep"), "clean")
    with (checkout / "sweep" / "manifest.py").open("a") as file:
        file.write("raise RuntimeError('the checkout of today')\n")
    path, version = run_python(WHERE, Path(code["path"]), cwd=checkout)
    assert Path(path) == Path(code["path"]) / "sweep" / "manifest.py"
    assert version == {name: code[name] for name in ("sha", "dirty", "hash")}
    again = run_python(TAKE, Path(code["path"]), str(tmp_path / "other"), "clean")  # a snapshot of a snapshot
    assert {**again, "path": ""} == {**code, "path": ""}
