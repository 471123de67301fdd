"""The state of a sweep as a person reads it: a table, one line, and what to do about it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sweep.launch.failures import alike
from sweep.record import FINISHED
from sweep.status import Job, RunStatus, SweepStatus

if TYPE_CHECKING:
    from rich.table import Table

TRACEBACKS = 3  # shown; runs that fail alike share one
LISTED = 60  # of a larger sweep only the runs that want attention are listed, and no more than so many
_ORDER = ("failed", "lost", "interrupted", "unknown", "cancelled", "running", "out_of_memory", "diverged", "queued",
          "planned", "done")  # fmt: skip
_UNLISTED = ("queued", "planned", "done")


def listed(state: SweepStatus, everything: bool = False) -> list[RunStatus]:
    """The runs that the table shows, what has failed first: all of a small sweep or where `everything` is asked for."""
    runs = sorted(state.runs, key=lambda run: _ORDER.index(run.shown))
    if everything or len(runs) <= LISTED:
        return runs
    return [run for run in runs if run.shown not in _UNLISTED][:LISTED]


def status_table(state: SweepStatus, everything: bool = False) -> Table:
    """A table for the terminal, of the runs `listed`."""
    from rich.table import Table

    runs = listed(state, everything)
    with_jobs = any(run.job for run in state.runs)
    columns = ["run", "shape", "B", "lr", "seed", "status", "steps", "loss", "attempts", *["job"] * with_jobs, "reason"]
    table = Table(box=None, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in ("run", "shape", "status", "job", "reason") else "right")
    for run in runs:
        cells = [
            run.run_id,
            f"{run.n_layer}x{run.d_model}",
            str(run.batch_tokens),
            f"{run.lr:.4g}",
            str(run.seed),
            run.shown + ("" if run.planned or not state.expected else " (not in the plan)"),
            f"{run.steps_done}/{run.steps}",
            "" if run.test_loss is None else f"{run.test_loss:.4f}",
            str(run.attempts),
            *[_job(run.job)] * with_jobs,
            _reason(run),
        ]
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))  # an error's brackets are no markup
    return table


def status_line(state: SweepStatus) -> str:
    """One line: present of expected, by status, and the share of the FLOPs."""
    counts = ", ".join(f"{count} {status}" for status, count in state.counts.items())
    share = f"; {state.flops_done / state.flops:.0%} of {state.flops:.3g} FLOP" if state.flops else ""
    return f"{state.sweep_dir}: {state.expected or len(state.runs)} runs: {counts or 'none'}{share}"


def remarks(state: SweepStatus, everything: bool = False) -> list[str]:
    """Lines to print after it: what the table leaves out, why no further run starts, what to do."""
    lines = []
    folder = shlex.quote(state.sweep_dir)
    if left_out := len(state.runs) - len(listed(state, everything)):
        lines.append(f"{left_out} runs are not listed; --all lists them")
    if state.stopped is not None:
        lines.append(f"the sweep stopped early: {state.stopped}")
    if state.slurm_problem is not None:
        lines.append(f"the state of its jobs is unknown: {state.slurm_problem}")
    again = sum(run.shown in ("failed", "lost") and run.job is not None for run in state.runs)
    if again:
        lines.append(f"isoloss logs {folder} RUN shows why; isoloss resubmit {folder} submits {again} again")
    if cancelled := state.counts.get("cancelled"):
        lines.append(f"{cancelled} cancelled; the sweep's own command submits them again")
    if state.runs and all(run.status in FINISHED for run in state.runs):
        lines.append(f"next: isoloss analyze {folder}")
    return lines


def tracebacks(state: SweepStatus) -> list[str]:
    """The tracebacks of the failed runs, one of each kind of error and TRACEBACKS at most, to print before the line."""
    kinds: list[RunStatus] = []
    for run in state.runs:
        if run.traceback and not any(alike([run.error or "", one.error or ""]) for one in kinds):
            kinds.append(run)
    return [f"run {run.run_id}:\n{(run.traceback or '').rstrip()}\n" for run in kinds[:TRACEBACKS]]


def _job(job: Job | None) -> str:
    if job is None:
        return ""
    return " ".join(filter(None, (job.id, job.state, job.node, f"({job.reason})" if job.reason else None)))


def _reason(run: RunStatus) -> str:
    notes = run.notes[-1:] if len(run.notes) < 2 else (f"{run.notes[-1]} (and {len(run.notes) - 1} before)",)
    return "; ".join(filter(None, (run.error, *notes)))
