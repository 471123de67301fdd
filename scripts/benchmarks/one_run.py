"""One process that trains one run of a plan, as isoloss does (`single`) or by the plain loop (`plain`).

    python scripts/benchmarks/one_run.py single|plain SWEEP_DIR RUN_ID CORPUS

Imports no more than the training needs: what it costs to start is measured too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweep.corpus import open_corpus
from sweep.plan import plan_offsets, read_run
from sweep.schema import PLAN_FILE, RUNS_DIR


def main(arm: str, sweep_dir: Path, run_id: str, corpus: Path) -> None:
    """Train it into SWEEP_DIR/runs/RUN_ID."""
    plan, run_dir = sweep_dir / PLAN_FILE, sweep_dir / RUNS_DIR / run_id
    planned = read_run(plan, plan_offsets(plan)[run_id], run_id)
    if arm == "plain":
        from baselines import train_plain

        train_plain(planned, open_corpus(corpus), "cpu", run_dir)
    else:
        from sweep.train import train_run

        status = train_run(planned, run_dir, open_corpus(corpus), "cpu")
        assert status == "done", status


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
