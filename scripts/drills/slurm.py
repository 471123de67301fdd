"""Drills on the SLURM of scripts/slurm_local.sh: what schedulers and nodes do to jobs."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable

from drills.cluster import Cluster, wait_until
from drills.lab import Lab, Result, Sweep
from sweep.launch.slurm.submission import FOLDER, read_submissions

SLURM = (
    "launcher=slurm",
    "launcher.gpus_per_run=0",
    "launcher.allow_dirty=true",
    "launcher.signal_seconds=30",
    "launcher.time_limit_minutes=30",
    "launcher.sbatch={exclusive: true}",  # a job a node, so that the loss of a node is that of one job
    "execution.checkpoint_seconds=2",
)
SECONDS = ("horizon.steps=12000",)  # a quarter of a minute a run
MINUTES = ("horizon.steps=70000",)  # more than a minute a run: SLURM needs that to see a time limit or a lost node
NODES = 4


class Jobs:
    """A sweep submitted to the cluster."""

    def __init__(self, lab: Lab, cluster: Cluster, name: str, science: tuple[str, ...], *overrides: str) -> None:
        self.cluster = cluster
        cluster.up()  # all nodes, also those that an earlier drill took away
        self.sweep = Sweep(lab, name, science, how=(*SLURM, *overrides))
        self.submit()

    def submit(self) -> None:
        """Submit what is left of it."""
        code, output = self.sweep.run()
        if code != 0:
            raise RuntimeError(f"isoloss sweep launcher=slurm: {output}")
        elements = [element for one in read_submissions(self.sweep.directory) for element in one.elements]
        self.ids = [element.job_id for element in elements]

    def progress(self, rows: int = 8) -> None:
        """Wait until so many further evaluations are recorded."""
        wanted = self.sweep.rows() + rows
        wait_until(lambda: self.sweep.rows() >= wanted or self.ended(), "evaluations", 300)

    def running(self, number: int = 0) -> bool:
        """Whether job `number` is running now."""
        return self.cluster.queued(self.ids[number]) == "RUNNING"

    def node(self, number: int = 0) -> str:
        """Where job `number` runs."""
        return self.cluster.node_of(self.ids[number])

    def ended(self) -> bool:
        """Whether every run has ended for good."""
        statuses = self.sweep.statuses()
        expected = sum(1 for _ in (self.sweep.directory / "plan.jsonl").open())
        return len(statuses) == expected and not {"planned", "running"} & set(statuses)

    def finish(self, result: Result, seconds: float = 900) -> None:
        """Wait for the end of all runs, and compare them with undisturbed ones."""
        try:
            wait_until(self.ended, "end of the runs", seconds)
        except TimeoutError as error:
            result.wrong.append(f"{error}\n{self.said()[-1000:]}")
        self.sweep.compare(result)

    def said(self) -> str:
        """What the jobs have printed."""
        return "\n".join(path.read_text() for path in sorted((self.sweep.directory / FOLDER).glob("*/*.out")))


def repeated(
    lab: Lab, cluster: Cluster, fault: str, strike: Callable[[Jobs], None], *overrides: str, times: int = 2
) -> Result:
    """One job with both runs; `strike` hits it while it trains, `times` times, at random moments."""
    result, moments = Result(fault), random.Random(0)
    jobs = Jobs(lab, cluster, fault.replace(" ", "-"), SECONDS, *overrides)
    for _ in range(times):
        jobs.progress()
        time.sleep(moments.uniform(0, 3))
        if jobs.running():
            strike(jobs)
            result.injected += 1
        wait_until(lambda: not jobs.running() or jobs.ended(), "the fault's effect")
    jobs.finish(result)
    starts = cluster.attempts(jobs.ids[0])
    result.expect(len(starts) == result.injected + 1, f"the job was started {len(starts)} times: {starts}")
    return result


def requeue(lab: Lab, cluster: Cluster) -> Result:
    """An administrator queues the job again."""

    def strike(jobs: Jobs) -> None:
        cluster.ask("scontrol", "requeue", jobs.ids[0])

    return repeated(lab, cluster, "scontrol requeue", strike)


def preemption(lab: Lab, cluster: Cluster) -> Result:
    """A job of a higher partition wants the node."""

    def strike(jobs: Jobs) -> None:
        node = f"--nodelist={jobs.node()}"
        cluster.ask("sbatch", "--partition=high", "--exclusive", node, "--output=/dev/null", "--wrap=sleep 3")

    return repeated(lab, cluster, "preemption", strike, "launcher.partition=low")


def node_down(lab: Lab, cluster: Cluster) -> Result:
    """The node is set down; SLURM starts the job elsewhere."""
    return repeated(lab, cluster, "node set down", lambda jobs: cluster.set_node(jobs.node(), "down"))


def time_limit(lab: Lab, cluster: Cluster) -> Result:
    """The job's time is over before its runs are."""
    result = Result("time limit reached")
    shortest = "launcher.time_limit_minutes=3", "launcher.signal_seconds=60"
    jobs = Jobs(lab, cluster, "time-limit", MINUTES, *shortest)
    jobs.finish(result)
    result.injected = len(cluster.attempts(jobs.ids[0])) - 1
    result.expect("exit code 85" in jobs.said(), f"the job did not ask to be queued again: {jobs.said()[-500:]}")
    return result


def lost_slurmd(lab: Lab, cluster: Cluster) -> Result:
    """kill -9 of the slurmd: nobody tells the job, which trains on while it is started again elsewhere."""
    result = Result("kill -9 of a slurmd")
    jobs = Jobs(lab, cluster, "lost-slurmd", MINUTES)
    jobs.progress()
    node = jobs.node()
    cluster.kill_slurmd(node)
    result.injected += 1
    jobs.finish(result)
    result.expect("superseded" in jobs.said(), f"the job that lived on was not fenced off: {jobs.said()[-500:]}")
    starts = cluster.attempts(jobs.ids[0])
    result.expect(starts[0] == "NODE_FAIL" and len(starts) == 2, f"starts of the job: {starts}")
    return result


def error_in_one_element(lab: Lab, cluster: Cluster) -> Result:
    """One of two array elements meets a Python error, three times; the other does not notice."""
    result = Result("error in one element")
    broken, other = (run.name for run in lab.reference(SECONDS).runs())
    directory = lab.folder / "one-element" / "runs"
    (directory / broken / "metrics.jsonl").mkdir(parents=True)
    jobs = Jobs(lab, cluster, "one-element", SECONDS, "launcher.pack_minutes=0.0001")
    wait_until(jobs.ended, "end of the runs", 300)
    status = jobs.sweep.status(directory / broken)
    result.injected = status.get("failures", 0)
    result.expect(status.get("status") == "failed" and result.injected == 3, f"status of the broken run: {status}")
    said = jobs.sweep.verb("status")
    result.expect(
        "Traceback" in said and "metrics.jsonl" in said, f"isoloss status does not show the traceback: {said}"
    )
    result.expect("Traceback" in jobs.sweep.verb("logs", broken), "isoloss logs does not show the traceback")
    whole = jobs.sweep.status(directory / other)
    result.expect((whole.get("status"), whole.get("attempts")) == ("done", 1), f"status of the other run: {whole}")
    (directory / broken / "metrics.jsonl").rmdir()
    said = jobs.sweep.verb("resubmit")
    result.expect("1 run" in said, f"isoloss resubmit said: {said}")
    wait_until(lambda: jobs.sweep.statuses() == ["done", "done"], "end of the run that was submitted again", 300)
    jobs.finish(result)
    return result


def many_tasks(lab: Lab, cluster: Cluster, tasks: int = 500) -> Result:
    """So many array tasks; midway one node is set down and the slurmd of another killed, for good."""
    result = Result(f"two nodes lost in {tasks} tasks")
    seeds = ",".join(map(str, range(tasks)))
    science = (f"grid.blocks.run.product.seed=[{seeds}]", "horizon.steps=30")
    jobs = Jobs(lab, cluster, "many", science, "launcher.pack_minutes=0.0001", "launcher.sbatch=null")
    done = lambda: jobs.sweep.statuses().count("done")  # noqa: E731
    wait_until(lambda: done() >= tasks // 3, "a third of the runs", 3600)
    cluster.set_node("node1", "down")
    cluster.kill_slurmd("node2")
    result.injected = 2
    jobs.finish(result, seconds=2 * 3600)
    again = [run for run in jobs.sweep.runs() if jobs.sweep.status(run).get("attempts") != 1]
    lost_slots = NODES  # two nodes of two CPUs each
    result.expect(len(again) <= lost_slots, f"{len(again)} runs were trained again, of at most {lost_slots} cut off")
    return result


def cancel_jobs(lab: Lab) -> None:
    """Cancel whatever jobs the sweeps of `lab` still have."""
    for folder in lab.folder.glob(f"*/{FOLDER}"):
        ids = [element.job_id for one in read_submissions(folder.parent) for element in one.elements]
        subprocess.run(["scancel", "--quiet", *ids])
