"""The commands of docs/cluster.md, typed one after another on a real cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from drills.cluster import Cluster

from sweep.plan import read_plan
from sweep.schema import PLAN_FILE

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"

# The page's own file of the site asks for GPUs and an account, which this cluster has not.
SITE = """\
defaults:
  - slurm
partition: main
gpus_per_run: 0
allow_dirty: true
"""


def blocks(kind: str) -> list[str]:
    """The page's fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_command_of_the_page_works(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "conf" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "launcher" / "site.yaml").write_text(SITE)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WANDB")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ISOLOSS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    found = blocks("sh")
    assert len(found) > 6
    for block in found:
        plan = tmp_path / "sweeps" / "first" / PLAN_FILE
        run = read_plan(plan)[0].run_id[:6] if plan.exists() else "RUN"
        done = subprocess.run(
            ["bash", "-ec", block.replace("RUN", run)], cwd=tmp_path, env=env, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "sweeps" / "smoke" / "analysis" / "report.html").exists()
    assert (tmp_path / "figures").is_dir()


def test_the_site_file_of_the_page_is_a_launcher(tmp_path: Path) -> None:
    from sweep.compose import compose
    from sweep.config import read_config

    [site] = blocks("yaml")
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "site.yaml").write_text(site)
    launcher = read_config(compose("sweep", ["launcher=site", "experiment=smoke"], tmp_path)).launcher
    assert launcher.name == "slurm"
    assert (launcher.partition, launcher.gpus_per_run) == ("gpu", 1)
