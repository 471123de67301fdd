"""The local cluster does what the tests and drills take for granted."""

from __future__ import annotations

import os
from pathlib import Path

from drills.cluster import Cluster, wait_until

SCRIPT = """#!/bin/bash
echo "$SLURM_RESTART_COUNT $(hostname) $CUDA_VISIBLE_DEVICES $SLURM_CONF"
trap 'scontrol requeue $SLURM_JOB_ID' USR2
while [ ! -e '{stop}' ]; do sleep 0.1; done
"""


def submit(cluster: Cluster, folder: Path, *options: str) -> str:
    script = folder / "job.sh"
    script.write_text(SCRIPT.format(stop=folder / "stop"))
    out = f"--output={folder}/out", "--open-mode=append"
    return cluster.ask("sbatch", "--parsable", "--requeue", *out, *options, str(script))[0]


def lines(folder: Path) -> list[list[str]]:
    path = folder / "out"
    said = path.read_text().splitlines() if path.exists() else []
    return [line.split(" ") for line in said if not line.startswith("slurmstepd")]


def test_jobs_see_their_node_their_gpu_and_this_cluster(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "--nodelist=node3", "--gpus=2")
    wait_until(lambda: lines(tmp_path), "start")
    assert lines(tmp_path) == [["", "node3", "0,1", os.environ["SLURM_CONF"]]]
    assert cluster.node_of(job) == "node3"
    (tmp_path / "stop").touch()
    wait_until(lambda: cluster.queued(job) is None or cluster.queued(job) == "COMPLETED", "end")
    wait_until(lambda: cluster.attempts(job) == ["COMPLETED"], "accounting")


def test_a_job_of_high_preempts_one_of_low_which_starts_again(cluster: Cluster, tmp_path: Path) -> None:
    low = submit(cluster, tmp_path, "--partition=low", "--nodes=4", "--exclusive", "--signal=B:USR2@60")
    wait_until(lambda: lines(tmp_path), "start")
    cluster.ask("sbatch", "--wait", "--partition=high", "--output=/dev/null", "--wrap=true")
    wait_until(lambda: len(lines(tmp_path)) == 2, "second start")
    (tmp_path / "stop").touch()
    assert [line[0] for line in lines(tmp_path)] == ["", "1"]
    wait_until(lambda: cluster.attempts(low) in (["REQUEUED", "COMPLETED"], ["PREEMPTED", "COMPLETED"]), "accounting")
