"""Sweeps submitted to a real SLURM: what is packed, split, quoted, copied, and run on several nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from drills.cluster import Cluster, wait_until
from drills.lab import Lab
from launching import Launched, lab_in, slurm

from sweep.launch.slurm.submission import read_submissions
from sweep.manifest import PACKAGED, code_root
from sweep.record import read_record
from sweep.schema import InputError

NASTY = """it's a $(touch PWNED) `touch PWNED` "sweep"; touch PWNED & #1"""
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
TINY = ("horizon.steps=20", "execution.eval_points_per_decade=2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("launch"))


def test_arrays_are_split_and_a_path_full_of_shell_does_no_harm(
    cluster: Cluster, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine runs, a job each, where an array holds eight at most. Nothing of it holds a key of the environment."""
    for name in SECRETS:
        monkeypatch.setenv(name, "planted-0123456789abcdef")
    science = (*TINY, "grid.blocks.run.product.seed=[0,1,2,3,4,5,6,7,8]")
    sweep = Launched(lab, "split", science, directory=lab.folder / NASTY)
    made = sweep.submit("launcher.setup=['export SAID=\"hello  there\"']", "launcher.parallel=3")
    assert made is not None
    assert [element.job_id.partition("_")[2] for element in made.elements] == [*"01234", *"0123"]
    first, second = dict.fromkeys(element.array_id for element in made.elements)
    for array, share in ((first, 2), (second, 1)):
        assert f"ArrayTaskThrottle={share}" in slurm("scontrol", "show", "job", array)
    assert sweep.submit() is None  # all of it is in the queue
    assert [one.number for one in read_submissions(sweep.directory)] == [made.number]
    sweep.wait(cluster, 240)
    sweep.equals_reference()
    assert cluster.attempts(first) == ["COMPLETED"] * 5
    assert not list(lab.folder.rglob("PWNED"))
    assert not Path("PWNED").exists()
    assert sweep.submit() is None  # all of it is done
    written = [path for path in sweep.directory.rglob("*") if path.is_file()]
    assert not [path for path in written if b"planted-0123456789abcdef" in path.read_bytes()]
    for run in sweep.runs():
        assert len([path for path in run.iterdir() if path.is_file()]) + 2 <= 12


def test_a_sweep_of_stacks_goes_on_without_them(cluster: Cluster, lab: Lab) -> None:
    """Four runs in one stack of one job, which is cancelled; then the same sweep with launcher.stack=off."""
    science = ("horizon.steps=1500", "grid.blocks.run.product.seed=[0,1]")
    sweep = Launched(lab, "stacks", (*science, "+grid.blocks.run.product.batch_tokens=[256,512]"))
    stacked = ("launcher.stack=on", "launcher.pack_minutes=9")
    made = sweep.submit(*stacked)
    assert made is not None
    assert {run.stack for run in sweep.frozen.runs} == {0}
    [element] = made.elements
    wait_until(lambda: sweep.rows() > 8, "evaluations")
    assert len(list(sweep.directory.glob("runs/*/metrics.jsonl"))) == 4  # side by side
    slurm("scancel", element.job_id)
    sweep.wait(cluster)
    made = sweep.submit("launcher.pack_minutes=9")
    assert made is not None
    sweep.wait(cluster)
    assert sweep.statuses() == ["done"] * 4, sweep.logs()
    said = [line.split()[1] for line in sweep.logs().splitlines() if "  step " in line]
    assert len([*groupby(said)]) == 4  # one after another


def test_a_refusal_of_sbatch_is_one_line(cluster: Cluster, lab: Lab) -> None:
    sweep = Launched(lab, "refused", TINY)
    with pytest.raises(InputError, match=r"sbatch refused the jobs: .*partition") as refused:
        sweep.submit("launcher.partition=nowhere")
    assert "\n" not in str(refused.value)
    assert read_submissions(sweep.directory) == []


def test_what_runs_is_the_code_that_was_planned(cluster: Cluster, lab: Lab, tmp_path: Path) -> None:
    """The checkout is broken, and is the working directory of the job, when the job starts."""
    checkout = tmp_path / "checkout"
    for package in PACKAGED:
        shutil.copytree(code_root() / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]; from drills.lab import Lab\n"
        "from launching import Launched\n"
        "made = Launched(Lab(Path(sys.argv[3])), 'planned', tuple(sys.argv[4:]))\n"
        "held = ('launcher.sbatch={hold: true}', 'launcher.allow_dirty=false', 'launcher.pack_minutes=9')\n"
        "print(made.submit(*held).elements[0].job_id)"
    )
    tests = Path(__file__).parent
    words = [str(tests), str(tests.parents[1] / "scripts"), str(lab.folder), *TINY]
    env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    for path in (checkout / "sweep").rglob("*.py"):
        path.write_text("raise RuntimeError('the checkout of today')\n")
    slurm("scontrol", "release", job)
    wait_until(lambda: cluster.queued(job) is None, f"end of job {job}")
    sweep = Launched(lab, "planned", TINY)
    for run in sweep.runs():
        manifest = read_record(run).manifest
        assert manifest["git"]["sha"] == sha
        assert manifest["git"]["dirty"] is False
        assert (sweep.directory / "code" / manifest["git"]["hash"] / "sweep" / "train.py").exists()
    assert sweep.statuses() == ["done", "done"]


def test_two_ranks_on_two_nodes_train_one_run_and_go_on_when_told_to_save(cluster: Cluster, lab: Lab) -> None:
    sweep = Launched(lab, "ranks", ("horizon.steps=600", "grid.blocks.run.product.seed=[3]"))
    made = sweep.submit("launcher.nodes=2", "launcher.ranks=2", "launcher.pack_minutes=9")
    assert made is not None
    wait_until(lambda: sweep.rows() > 3, "evaluations")
    job = made.elements[0].job_id
    slurm("scancel", "--signal=USR2", job)
    reference = lab.reference(sweep.science)  # while it waits
    sweep.wait(cluster)
    starts = slurm("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "NNodes,State").split()
    assert starts == ["2|REQUEUED", "2|COMPLETED"], sweep.logs()
    [run], [alone] = sweep.runs(), reference.runs()
    rows, expected = (read_record(folder).rows for folder in (run, alone))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    np.testing.assert_allclose([row["test_loss"] for row in rows], [row["test_loss"] for row in expected], rtol=1e-4)


def test_hydras_own_launcher_trains_through_the_same_function(cluster: Cluster, lab: Lab) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    out = lab.folder / "hydra"
    words = [
        "data=text", "tracking=none", "model.shape=1x16", "model.n_ctx=32", "model.d_head=8", "horizon.steps=20",
        "schedule.warmup_steps=5", "batch_tokens=256", "data.name=stdlib", "data.test_tokens=1024",
        f"data.files=['{Path(subprocess.__file__).parent}/json/*.py']", "data.max_epochs=100", "seed=0,1",
        "launcher.device=cpu",
    ]  # fmt: skip
    asked = [
        "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=5",
        f"hydra.sweep.dir={out / 'hydra'}", f"sweep_dir={out}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sweep.cli", "train", *asked, *words],
        env={**lab.env, "SLURM_CONF": os.environ["SLURM_CONF"]}, cwd=lab.folder, capture_output=True, text=True,
    )  # fmt: skip
    logs = "\n".join(path.read_text() for path in out.rglob("*log.*"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    sweep = Launched(lab, "hydra")
    assert sweep.statuses() == ["done", "done"], logs
    for run in sweep.runs():
        assert "SLURM_JOB_ID" in read_record(run).manifest["slurm"]
