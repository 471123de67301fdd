"""What every launcher does before the first run starts: make the token files, freeze the plan, find what is left to do.

A sweep directory belongs to one plan. Starting the sweep again with the same runs goes on with it: how the runs are
computed (micro-batch, threads) then comes from the frozen plan, so that a resumed run repeats the same arithmetic,
while the paths of the text come from the new command, since they may have moved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sweep.plan import read_plan, write_plan
from sweep.record import FINISHED as FINISHED
from sweep.record import damage, read_execution, read_status
from sweep.run_dir import run_dir
from sweep.schema import MANIFEST_FILE, PLAN_FILE, RUNS_DIR, InputError
from sweep.spec import DataSpec, Execution, PlannedRun, Source
from sweep.stacking import expected_cost as expected_cost
from sweep.stacking import in_order


@dataclass(frozen=True)
class Frozen:
    """A sweep that may start: its runs in the plan's order and where each run's token files lie."""

    sweep_dir: Path
    runs: list[PlannedRun]
    corpora: dict[str, Path]  # data_hash -> directory of the token files

    def run_dir(self, planned: PlannedRun) -> Path:
        """Where the record of a run lies. Raises InputError where that is a link out of the sweep directory."""
        return run_dir(self.sweep_dir, planned.run_id)

    def corpus(self, planned: PlannedRun) -> Path:
        """Directory of the token files of a run."""
        return self.corpora[planned.data_hash or ""]

    def unfinished(self) -> list[PlannedRun]:
        """Runs without a result yet (planned, running, failed) as they start: by priority, then the longest stacks
        first, the members of a stack together."""
        left = [run for run in self.runs if not has_result(self.run_dir(run))]
        return [run for members in in_order(left) for run in members]


def recorded_status(run_dir: Path) -> str:
    """A run's status by its record; planned where there is none."""
    return str((read_status(run_dir) or {}).get("status", "planned"))


def has_result(run_dir: Path) -> bool:
    """Whether a run has ended for good, by the attempt in force, and its record can be read; a damaged record is made
    again."""
    return recorded_status(run_dir) in FINISHED and damage(run_dir) is None


def freeze(sweep_dir: Path, runs: list[PlannedRun], progress: bool = False, stack: bool = True) -> Frozen:
    """Check `runs` against the plan in `sweep_dir`, make the token files, and write the plan at the first start.
    Stacks stay as they were planned then; without `stack` their runs go on one by one.

    Raises InputError where the directory belongs to another plan, where the text is no longer the one the sweep
    started on, or where the text is too small for a run. Nothing is written in these cases.
    """
    if not runs:
        raise InputError("the plan has no runs; loosen grid.where or give grid.blocks some values")
    path = sweep_dir / PLAN_FILE
    earlier = read_plan(path) if path.exists() else None
    if earlier is not None:
        runs = _same_runs(sweep_dir, earlier, runs, stack)
    runs, corpora = on_text(sweep_dir, runs, progress)
    if earlier is None:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        write_plan(path, runs)
    return Frozen(sweep_dir, runs, corpora)


def _same_runs(sweep_dir: Path, earlier: list[PlannedRun], runs: list[PlannedRun], stack: bool) -> list[PlannedRun]:
    new = {run.run_id: run for run in runs}
    old = {run.run_id for run in earlier}
    if set(new) != old:
        raise InputError(
            f"{sweep_dir} belongs to another plan ({len(old)} runs, {len(old - set(new))} of them not in this one; "
            f"{len(set(new) - old)} of this one not in it); set sweep_dir to a new folder, or repeat its own command, "
            f"which {RUNS_DIR}/*/{MANIFEST_FILE} holds as argv"
        )
    return [_onward(run, new[run.run_id], stack) for run in earlier]


def _onward(earlier: PlannedRun, new: PlannedRun, stack: bool) -> PlannedRun:
    if earlier.stack is not None and not stack:
        # the micro-batch of a run by itself, which a plan with stacks does not know: None, chosen where it is trained
        micro = new.execution.micro_batch if new.stack is None else None
        execution = dataclasses.replace(earlier.execution, micro_batch=micro)
        return dataclasses.replace(earlier, source=new.source, execution=execution, stack=None)
    return dataclasses.replace(earlier, source=new.source, execution=_execution(earlier.execution, new.execution))


def _execution(earlier: Execution, new: Execution) -> Execution:
    # A plan made for a GPU leaves the micro-batch to it; going on with a CPU takes the CPU's.
    return dataclasses.replace(earlier, micro_batch=earlier.micro_batch or new.micro_batch)


def as_begun(planned: PlannedRun, run_dir: Path) -> PlannedRun:
    """A run of its own, without a frozen plan: computed as it was when it began, so that a resume repeats the same
    arithmetic."""
    earlier = read_execution(run_dir)
    return dataclasses.replace(planned, execution=_execution(earlier, planned.execution)) if earlier else planned


def on_text(sweep_dir: Path, runs: list[PlannedRun], progress: bool) -> tuple[list[PlannedRun], dict[str, Path]]:
    """The runs with the hash of their token files, and the directory of the token files by hash, made where absent.

    Raises InputError where a run was frozen on other text, and where the text is too small for a run.
    """
    from sweep.batches import check_epochs
    from sweep.corpus import prepare

    made = {}
    checked = []
    for run in runs:
        key: tuple[DataSpec, Source] = (run.spec.data, run.source)
        if key not in made:
            made[key] = prepare(run.spec.data, run.source, progress=progress)
        corpus = made[key]
        if run.data_hash not in (None, corpus.data_hash):
            raise InputError(
                f"{sweep_dir} was started on other text than data={run.spec.data.name} gives now (token hash "
                f"{run.data_hash}, now {corpus.data_hash}); restore the text, or start anew with another sweep_dir"
            )
        check_epochs(run.spec, run.source, corpus)
        checked.append(dataclasses.replace(run, data_hash=corpus.data_hash))
    return checked, {corpus.data_hash: corpus.path for corpus in made.values()}
