"""One attempt at a run of a frozen sweep, as a job of submission 1 makes it.

    attempt.py SWEEP_DIR CORPUS RUN_ID RESTART

Prints the status it ends in. What a scheduler starts twice, the drills start as two of these.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweep.config import TrackingConfig
from sweep.launch.attempt import Job, Task, train_job
from sweep.plan import read_plan
from sweep.tracking import Mirror

if __name__ == "__main__":
    directory, corpus, run_id, restart = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    planned = next(run for run in read_plan(directory / "plan.jsonl") if run.run_id == run_id)
    job = Job((Task(planned, directory / "runs" / run_id),), corpus)
    mirror = Mirror(TrackingConfig("none", "", None, "offline"))
    (ended,) = train_job(job, "cpu", mirror, lambda message: None, claim=(1, restart))
    print(ended.status, ended.error)
