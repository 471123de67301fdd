"""Submitting where sbatch refuses, on a PATH whose sbatch answers what SLURM's was seen to answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import configs
from sweep.config import TrackingConfig, launcher_config
from sweep.launch.slurm.job import Pack
from sweep.launch.slurm.submission import Submission, job_folder, read_submissions, reserve
from sweep.launch.slurm.submit import _send
from sweep.launcher import SlurmLauncher
from sweep.schema import InputError

# Takes `taken` submissions and refuses the next, as a cluster with a limit on queued jobs does.
SBATCH = """\
#!/bin/sh
echo x >> {folder}/calls
[ $(/usr/bin/wc -l < {folder}/calls) -le {taken} ] && {{ echo "Submitted batch job 7"; exit 0; }}
echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
exit 1
"""
REASON = "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates accounting/QOS policy"


def send(sweep_dir: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Submit two arrays of two jobs, of which sbatch takes `taken`; returns the complaint."""
    folder = sweep_dir / "bin"
    folder.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH.format(folder=folder, taken=taken)), ("srun", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
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
