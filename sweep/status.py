"""How far a sweep is: the runs its plan expects against the records that are there. Reads files only."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.lease import is_held
from sweep.plan import read_plan
from sweep.record import read_status
from sweep.schema import METRICS_FILE, PLAN_FILE, RUNS_DIR, SPEC_FILE, STATUSES, InputError
from sweep.spec import PlannedRun, RunSpec, build

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RunStatus:
    """One run of a sweep. `interrupted` is no recorded status: a run recorded as running that nobody trains."""

    run_id: str
    n_layer: int
    d_model: int
    batch_tokens: int
    lr: float
    seed: int
    status: str  # one of STATUSES
    active: bool  # some process is training it now
    planned: bool  # the sweep's plan expects it
    attempts: int
    steps_done: int  # at the newest evaluation
    steps: int
    test_loss: float | None
    error: str | None

    @property
    def shown(self) -> str:
        """The status as a person wants to read it."""
        return "interrupted" if self.status == "running" and not self.active else self.status


@dataclass(frozen=True)
class SweepStatus:
    """All runs of a sweep directory."""

    sweep_dir: str
    expected: int  # runs in the plan; 0 without a plan
    runs: list[RunStatus]
    flops_done: float
    flops: float  # of all runs in the plan

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status as shown."""
        found = Counter(run.shown for run in self.runs)
        return {status: found[status] for status in (*STATUSES, "interrupted") if found[status]}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "counts": self.counts}


def sweep_status(sweep_dir: Path) -> SweepStatus:
    """The state of every run that the plan in `sweep_dir` expects or of which a record is there.

    Raises InputError where `sweep_dir` is no sweep directory.
    """
    plan_path, runs_dir = sweep_dir / PLAN_FILE, sweep_dir / RUNS_DIR
    if not plan_path.exists() and not runs_dir.is_dir():
        raise InputError(f"{sweep_dir} is not a sweep directory: it has neither {PLAN_FILE} nor {RUNS_DIR}/")
    plan = read_plan(plan_path) if plan_path.exists() else []
    rows, done = [], 0.0
    for planned in plan:
        row, flops = _run_status(runs_dir / planned.run_id, planned.spec, planned)
        rows.append(row)
        done += flops
    expected = {planned.run_id for planned in plan}
    for run_dir in sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []:
        spec = None if run_dir.name in expected else _recorded_spec(run_dir)
        if spec is not None:
            rows.append(_run_status(run_dir, spec, None)[0])
    return SweepStatus(str(sweep_dir), len(plan), rows, done, sum(planned.costs.get("flops", 0.0) for planned in plan))


def last_evaluation(run_dir: Path) -> dict[str, Any] | None:
    """The newest whole row of a run's metrics, or None."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # half-written, or cut by the 8 KiB
            continue
        if isinstance(row, dict):
            return row
    return None


def _run_status(run_dir: Path, spec: RunSpec, planned: PlannedRun | None) -> tuple[RunStatus, float]:
    recorded = read_status(run_dir) or {}
    row = last_evaluation(run_dir) or {}
    status = recorded.get("status", "planned")
    return RunStatus(
        run_id=spec.run_id,
        n_layer=spec.model.n_layer,
        d_model=spec.model.d_model,
        batch_tokens=spec.batch_tokens,
        lr=spec.optimizer.lr,
        seed=spec.seed,
        status=status,
        active=status == "running" and is_held(run_dir),
        planned=planned is not None,
        attempts=recorded.get("attempts", 0),
        steps_done=row.get("step", 0),
        steps=spec.steps,
        test_loss=row.get("test_loss"),
        error=recorded.get("error"),
    ), row.get("flops", 0.0)


def _recorded_spec(run_dir: Path) -> RunSpec | None:
    try:
        data = json.loads((run_dir / SPEC_FILE).read_text())
        data.pop("run_id", None)
        return build(RunSpec, data)
    except (OSError, ValueError):  # not a run's directory, or a record that `isoloss collect` sets aside by name
        return None


def status_table(state: SweepStatus) -> Table:
    """A table for the terminal: what has failed and what runs first, the finished ones last."""
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("run", "shape", "B", "lr", "seed", "status", "steps", "loss", "attempts", "reason"):
        table.add_column(name, justify="left" if name in ("run", "shape", "status", "reason") else "right")
    order = {"failed": 0, "interrupted": 1, "running": 2, "out_of_memory": 3, "diverged": 4, "planned": 5, "done": 6}
    for run in sorted(state.runs, key=lambda run: order.get(run.shown, 0)):
        table.add_row(
            run.run_id,
            f"{run.n_layer}x{run.d_model}",
            str(run.batch_tokens),
            f"{run.lr:.4g}",
            str(run.seed),
            run.shown + ("" if run.planned or not state.expected else " (not in the plan)"),
            f"{run.steps_done}/{run.steps}",
            "" if run.test_loss is None else f"{run.test_loss:.4f}",
            str(run.attempts),
            run.error or "",
        )
    return table


def status_line(state: SweepStatus) -> str:
    """One line: present of expected, by status, and the share of the FLOPs."""
    counts = ", ".join(f"{count} {status}" for status, count in state.counts.items())
    share = f"; {state.flops_done / state.flops:.0%} of {state.flops:.3g} FLOP" if state.flops else ""
    return f"{state.sweep_dir}: {state.expected or len(state.runs)} runs: {counts or 'none'}{share}"
