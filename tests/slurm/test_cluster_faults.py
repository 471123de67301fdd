"""Faults that a real SLURM inflicts on jobs: their runs end as if there had been none, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from drills.cluster import Cluster, wait_until
from drills.lab import Lab
from launching import Launched, lab_in, slurm

from sweep.lease import newest_number
from sweep.record import read_record

LONG = ("horizon.steps=4000", "grid.blocks.run.product.seed=[0]")  # some seconds
SHORT = ("horizon.steps=100",)
PACKED = "launcher.pack_minutes=10"  # all runs in one job


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("faults"))


def started(cluster: Cluster, sweep: Launched, rows: int = 6) -> tuple[str, str]:
    """Job id and node of a sweep of one job, once it has recorded some evaluations."""
    job = sweep.submission.elements[0].job_id
    wait_until(lambda: sweep.rows() >= rows, f"evaluations of {sweep.directory}")
    return job, cluster.node_of(job)


def test_told_to_save_requeued_and_preempted_runs_go_on_bit_for_bit(cluster: Cluster, lab: Lab) -> None:
    told, requeued, preempted = (Launched(lab, name, LONG) for name in ("told", "requeued", "preempted"))
    early = Launched(lab, "early", SHORT)
    ready = lab.folder / "ready"
    slow = f"bash -c 'touch {ready}; sleep 3; exec {sys.executable} \"$@\"' --"
    early.submit(PACKED, "launcher.python='" + slow.replace("'", "\\'") + "'")
    wait_until(ready.exists, "start of Python")
    slurm("scancel", "--signal=USR2", early.submission.elements[0].job_id)  # which nobody hears yet
    told.submit(PACKED)
    requeued.submit(PACKED)
    preempted.submit(PACKED, "launcher.partition=low", "launcher.sbatch={exclusive: true}")
    job, _ = started(cluster, told)
    slurm("scancel", "--signal=USR2", job)
    job, _ = started(cluster, requeued)
    slurm("scontrol", "requeue", job)
    job, node = started(cluster, preempted)
    slurm("sbatch", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 2")
    lab.reference(LONG)  # while they wait
    for sweep in (told, early, requeued, preempted):
        sweep.wait(cluster)
        sweep.equals_reference()
        states = cluster.attempts(sweep.submission.elements[0].job_id)
        assert len(states) == 2, states
        assert states[-1] == "COMPLETED"
        assert max(sweep.status(run)["attempts"] for run in sweep.runs()) == 1 + (sweep is not early)
    assert "User defined signal 2" in early.logs()
    # these end with the exit code that asks for another start
    assert "Exited with exit code 85" in told.logs()
    assert "Exited with exit code 85" in preempted.logs()


def test_of_a_job_that_lives_on_after_its_node_was_lost_nothing_is_left(cluster: Cluster, lab: Lab) -> None:
    """One node is set down. Another is cut off: its slurmd is killed and nothing that runs there hears of it; the job,
    asleep in mid-run, wakes up when the one queued again has finished the runs."""
    down, lost = Launched(lab, "down", LONG), Launched(lab, "lost", LONG)
    for sweep in (down, lost):
        sweep.submit(PACKED, "launcher.sbatch={exclusive: true}")
    _, node = started(cluster, down)
    cluster.set_node(node, "down")
    job, node = started(cluster, lost)
    [current] = [run for run in lost.runs() if lost.status(run)["status"] == "running"]
    zombie = json.loads((current / f"lease.{newest_number(current)}").read_text())["pid"]
    asleep = [pid for pid in processes(job) if pid == zombie or command(pid).startswith("srun")]
    try:
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        cluster.kill_slurmd(node)
        for sweep in (down, lost):
            sweep.wait(cluster)
            sweep.equals_reference()
            assert cluster.attempts(sweep.submission.elements[0].job_id)[0] == "NODE_FAIL"
        before = contents(lost)
        os.kill(zombie, signal.SIGCONT)
        wait_until(lambda: "superseded" in lost.logs(), "the zombie's last word")
    finally:
        for pid in asleep:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert contents(lost) == before
    assert lost.status(current)["attempts"] == 2


def processes(job: str) -> list[int]:
    """Those of a job, of all its nodes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SLURM_JOB_ID={job}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def command(pid: int) -> str:
    """Name of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def contents(sweep: Launched) -> dict[str, bytes]:
    """All that the records hold."""
    files = (path for path in (sweep.directory / "runs").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_a_python_error_in_one_element_leaves_the_others_untouched(cluster: Cluster, lab: Lab) -> None:
    sweep = Launched(lab, "error", SHORT)
    frozen_at = sweep.directory / "runs"
    reference = lab.reference(SHORT)
    broken, whole = sorted(run.name for run in reference.runs())
    (frozen_at / broken / "metrics.jsonl").mkdir(parents=True)  # which cannot be written as a file
    made = sweep.submit("launcher.retries=1")
    assert made is not None
    assert len(made.elements) == 2
    sweep.wait(cluster)
    status = sweep.status(frozen_at / broken)
    assert status["status"] == "failed"
    assert status["failures"] == 2
    assert "metrics.jsonl" in status["error"]
    assert "Traceback" in (frozen_at / broken / "error.txt").read_text()
    assert sweep.status(frozen_at / whole)["status"] == "done"
    states = {element.run_ids[0]: cluster.attempts(element.job_id) for element in made.elements}
    assert states == {broken: ["FAILED"], whole: ["COMPLETED"]}
    # asked again, only what failed is submitted, and tried anew
    (frozen_at / broken / "metrics.jsonl").rmdir()
    again = sweep.submit()
    assert again is not None
    assert [element.run_ids for element in again.elements] == [(broken,)]
    sweep.wait(cluster)
    sweep.equals_reference()


def test_ranks_of_which_one_is_killed_start_afresh(cluster: Cluster, lab: Lab) -> None:
    sweep = Launched(lab, "killed", ("horizon.steps=1500", "grid.blocks.run.product.seed=[0]"))
    sweep.submit("launcher.ranks=2")
    job, _ = started(cluster, sweep)
    [run] = sweep.runs()
    first = json.loads((run / f"lease.{newest_number(run)}").read_text())["pid"]
    [second] = [pid for pid in processes(job) if "python" in command(pid) and pid != first]
    os.kill(second, signal.SIGKILL)
    sweep.wait(cluster)
    assert cluster.attempts(job) == ["REQUEUED", "COMPLETED"], sweep.logs()
    status = sweep.status(run)
    assert (status["status"], status["attempts"], status["failures"]) == ("done", 2, 1)
    steps = [row["step"] for row in read_record(run).rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 1500
