"""What is submitted, and what is said where sbatch refuses, on a PATH whose commands answer what SLURM's were seen to
answer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitit.core.utils import DelayedSubmission

import configs
from sweep.compose import compose
from sweep.config import TrackingConfig, launcher_config, read_config
from sweep.launch.freeze import freeze
from sweep.launch.slurm.job import Pack
from sweep.launch.slurm.submission import Submission, job_folder, read_submissions, reserve
from sweep.launch.slurm.submit import _send, submit
from sweep.launcher import SlurmLauncher
from sweep.lease import hold
from sweep.plan import plan_sweep, read_plan
from sweep.schema import PLAN_FILE, InputError
from sweep.spec import PlannedRun

# Takes `taken` submissions and refuses the next, as a cluster with a limit on queued jobs does.
SBATCH = """\
#!/bin/sh
echo x >> {folder}/calls
[ $(/usr/bin/wc -l < {folder}/calls) -le {taken} ] && {{ echo "Submitted batch job 7"; exit 0; }}
echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
exit 1
"""
SCONTROL = """\
#!/bin/sh
echo "MaxArraySize            = 1001"
echo "KillWait                = 30 sec"
"""
REASON = "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates accounting/QOS policy"


def cluster_in(folder: Path, taken: int) -> Path:
    """`folder` with the commands of a cluster."""
    folder.mkdir(parents=True)
    sbatch = SBATCH.format(folder=folder, taken=taken)
    for name, text in {"sbatch": sbatch, "srun": "#!/bin/sh\n", "squeue": "#!/bin/sh\n", "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def send(sweep_dir: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Submit two arrays of two jobs, of which sbatch takes `taken`; returns the complaint."""
    monkeypatch.setenv("PATH", str(cluster_in(sweep_dir / "bin", taken)))
    values = yaml.safe_load((Path(configs.__file__).parent / "launcher" / "slurm.yaml").read_text())
    launcher = launcher_config(values)
    assert isinstance(launcher, SlurmLauncher)
    tracking = TrackingConfig("none", "isoloss", None, "auto")
    number = reserve(sweep_dir)
    ids = [f"{index:016x}" for index in range(4)]
    packs = [
        Pack(str(sweep_dir), number, ((one, 0),), {}, "cpu", 1, tracking, 2, 5, 8, 30, ("isoloss",)) for one in ids
    ]
    submission = Submission(number, "2026-11-22T10:32:28Z", ("isoloss",), (), 8, {}, {})
    with pytest.raises(InputError) as refused:
        _send(sweep_dir, submission, [packs[:2], packs[2:]], dict.fromkeys(ids, 1.0), launcher, {})
    assert job_folder(sweep_dir, number).is_dir()
    return str(refused.value)


def test_a_refusal_says_why_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = send(tmp_path, 0, monkeypatch)
    assert f"refused the jobs: {REASON};" in complaint
    assert "sbatch: error" not in complaint
    assert read_submissions(tmp_path) == []


def test_a_refusal_midway_says_what_was_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = send(tmp_path, 1, monkeypatch)
    assert REASON in complaint
    assert "2 jobs before these were accepted and go on, the same command submits the others" in complaint
    [written] = read_submissions(tmp_path)
    assert [element.job_id for element in written.elements] == ["7_0", "7_1"]


def test_a_job_trains_as_stacks_what_its_submission_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sweep that was planned with stacks: with them, without them, and without them as `resubmit` has it, which
    knows the plan only."""
    monkeypatch.setenv("PATH", f"{cluster_in(tmp_path / 'bin', 9)}:{os.environ['PATH']}")
    shared = ["experiment=smoke", "launcher=slurm", "launcher.gpus_per_run=0", "launcher.allow_dirty=true",
              "grid.blocks.batches.product.batch_tokens=[128,512,8192]"]  # fmt: skip
    configuration = {stack: compose("sweep", [*shared, f"launcher.stack={stack}"]) for stack in ("on", "off")}
    stacked, alone = (plan_sweep(configuration[stack]) for stack in ("on", "off"))
    sizes = [[run.execution.micro_batch for run in runs if run.spec.batch_tokens == 8192] for runs in (stacked, alone)]
    assert sizes[0] != sizes[1]

    def submitted(stack: str, runs: list[PlannedRun]) -> dict[str, PlannedRun]:
        """Each run as its job has it."""
        config = read_config(configuration[stack])
        assert isinstance(config.launcher, SlurmLauncher)
        sweep_dir = tmp_path / "sweep"
        with hold(sweep_dir, "sweep"):
            frozen = freeze(sweep_dir, runs, stack=stack == "on")
            made = submit(frozen, frozen.unfinished(), config.launcher, config.tracking, ["isoloss"])
        assert made is not None
        files = job_folder(sweep_dir, made.number).glob("*_submitted.pkl")
        packs: list[Any] = [DelayedSubmission.load(path).function for path in files]
        return {run_id: pack.planned(run_id, offset) for pack in packs for run_id, offset in pack.runs}

    def how(runs: Iterable[PlannedRun]) -> dict[str, tuple[int | None, int | None]]:
        return {run.run_id: (run.stack, run.execution.micro_batch) for run in runs}

    assert how(submitted("on", stacked).values()) == how(stacked)
    assert how(submitted("off", alone).values()) == how(alone)
    assert how(submitted("off", read_plan(tmp_path / "sweep" / PLAN_FILE)).values()) == how(alone)
