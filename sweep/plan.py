"""Plans: a composed configuration becomes the list of runs it asks for, each with its costs, and plan.jsonl."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sweep.accounting import count_params
from sweep.config import Config, read_config, run_section
from sweep.estimate import LOCAL_CPU, Machine, estimate_seconds, launch_workers, machine, read_measurements
from sweep.grid import compile_where, expand
from sweep.ladder import describe, micro_batch, resolve_model
from sweep.launcher import SlurmLauncher
from sweep.resolve import resolve_optimizer, resolve_schedule, resolve_steps
from sweep.schema import PF_DAY, InputError
from sweep.spec import Execution, PlannedRun, RunSpec
from sweep.stacking import group, in_order, seconds_to_end, stacks

if TYPE_CHECKING:
    from rich.table import Table

LISTED = 400  # runs that a printed table holds
_LINE_START = re.compile(rb'\{"run_id": "([0-9a-f]{16})"')


def plan_sweep(config: dict[str, Any]) -> list[PlannedRun]:
    """The runs of a composed sweep with their stacks, in the grid's order; what several cells ask for appears once.

    Raises InputError, naming the cell, for what cannot be run, and where a block's filter leaves nothing.
    """
    typed = read_config(config)
    target, measurements = machine(typed.launcher), read_measurements()
    runs: dict[str, PlannedRun] = {}
    for name, block in typed.blocks.items():
        keep = None if block.where is None else compile_where(block.where, f"grid.blocks.{name}.where")
        kept = 0
        for cell in expand(name, block):
            try:
                planned = _plan_run(typed, {**typed.run, **cell}, target, measurements, block.priority)
            except InputError as error:
                said = ", ".join(f"{key}={value}" for key, value in cell.items() if value is not None)
                raise InputError(f"{error}" + (f" (grid block {name}: {said})" if said else "")) from error
            if keep is None or keep(_where_values(planned)):
                kept += 1
                earlier = runs.get(planned.run_id)
                if earlier is None or block.priority < earlier.priority:
                    runs[planned.run_id] = planned
        if not kept:
            raise InputError(f"grid.blocks.{name} has no run: its where, {block.where!r}, keeps none of its cells")
    return _stacked(list(runs.values()), typed, target, measurements)


def _stacked(
    runs: list[PlannedRun], config: Config, target: Machine, measurements: dict[str, float]
) -> list[PlannedRun]:
    """The runs with their stacks, where the launcher makes any, and the times of those."""
    launcher = config.launcher
    if launcher.stack == "off":
        return runs
    packed = 60.0 * launcher.pack_minutes if isinstance(launcher, SlurmLauncher) else 0.0
    keep_micro = config.execution.micro_batch is not None
    runs = group(runs, launch_workers(launcher), target, packed, keep_micro)
    for members in stacks(runs):
        if len(members) > 1:
            shares, measured = estimate_seconds(members, target, measurements)
            for run, seconds in zip(members, shares, strict=True):
                run.costs.update(seconds=seconds, measured=float(measured))
    return runs


def plan_one(config: dict[str, Any]) -> PlannedRun:
    """The one run of a composed training configuration. Raises InputError where a grid asks for several."""
    runs = plan_sweep(config)
    if len(runs) != 1:
        raise InputError(f"the configuration asks for {len(runs)} runs; train one of them, or use isoloss sweep")
    return runs[0]


def _plan_run(
    config: Config, run: dict[str, Any], target: Machine, measurements: dict[str, float], priority: int
) -> PlannedRun:
    scalars = run_section("", run)
    model = resolve_model(run_section("model", run), config.data.vocab_size)
    params = count_params(model).params
    steps = resolve_steps(run_section("horizon", run), params, scalars.batch_tokens)
    spec = RunSpec(
        model=model,
        data=config.data,
        batch_tokens=scalars.batch_tokens,
        steps=steps,
        optimizer=resolve_optimizer(run_section("optimizer", run), model, scalars.batch_tokens),
        schedule=resolve_schedule(run_section("schedule", run), steps, scalars.batch_tokens),
        precision=scalars.precision,
        seed=scalars.seed,
        weight_average=scalars.weight_average,
    )
    execution = _execution(config.execution, spec, target.device)
    planned = PlannedRun(spec, config.source, execution, priority=priority)
    [seconds], measured = estimate_seconds([planned], target, measurements)
    costs = {
        "params": float(params),
        "tokens": float(spec.tokens),
        "flops": 6.0 * params * spec.tokens,
        "seconds": seconds,
        "measured": float(measured),
    }
    return dataclasses.replace(planned, costs=costs)


def _execution(execution: Execution, spec: RunSpec, device: str) -> Execution:
    """With the micro-batch: as given, on a CPU from the plan alone, on a GPU left to the trainer."""
    given = execution.micro_batch
    if given is not None:
        if given <= 0 or spec.batch_sequences % given:
            raise InputError(
                f"execution.micro_batch {given} does not divide the batch of {spec.batch_sequences} sequences; "
                "set it to null or to a divisor"
            )
        return execution
    if device != "cpu":
        return execution
    return dataclasses.replace(execution, micro_batch=micro_batch(spec.model, spec.batch_sequences))


def _where_values(planned: PlannedRun) -> dict[str, float]:
    spec = planned.spec
    return {
        "params": planned.costs["params"],
        "tokens": planned.costs["tokens"],
        "flops": planned.costs["flops"],
        "batch_tokens": spec.batch_tokens,
        "steps": spec.steps,
        "n_layer": spec.model.n_layer,
        "d_model": spec.model.d_model,
        "lr": spec.optimizer.lr,
        "seed": spec.seed,
    }


def write_plan(path: Path, runs: Iterable[PlannedRun]) -> None:
    """Write plan.jsonl, one run a line, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("w") as file:
        file.writelines(json.dumps(run.to_dict()) + "\n" for run in runs)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_plan(path: Path) -> list[PlannedRun]:
    """Read plan.jsonl. Raises InputError, naming the line, where it is missing, damaged or was edited."""
    with _open_plan(path) as file:
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(file, 1)]


def plan_offsets(path: Path) -> dict[str, int]:
    """Where each run's line starts in plan.jsonl, in bytes, for `read_run`. Looks at the run_id of each line only.

    Raises InputError, naming the line, where the file is missing or a line does not start with a run_id.
    """
    offsets, position = {}, 0
    with _open_plan(path) as file:
        for number, line in enumerate(file, 1):
            start = _LINE_START.match(line)
            if start is None:
                raise InputError(
                    f"{path}:{number} does not start with a run_id; restore it or plan into a new sweep_dir"
                )
            offsets[start[1].decode()] = position
            position += len(line)
    return offsets


def read_run(path: Path, offset: int, run_id: str) -> PlannedRun:
    """The run whose line starts at byte `offset` of plan.jsonl. Raises InputError where that line is not `run_id`'s."""
    where = f"{path}, byte {offset}"
    with _open_plan(path) as file:
        file.seek(offset)
        planned = _parse(file.readline(), where)
    if planned.run_id != run_id:
        raise InputError(
            f"{where}: run {planned.run_id} instead of {run_id}; the plan has changed, submit the sweep anew"
        )
    return planned


def _open_plan(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"no plan at {path}; is this a sweep directory? isoloss sweep makes one") from error


def _parse(line: bytes, where: str) -> PlannedRun:
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise ValueError(content)
    except ValueError as error:  # also bytes that are no text
        raise InputError(f"{where} is not JSON of a run; restore it or plan into a new sweep_dir") from error
    try:
        return PlannedRun.from_dict(content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def plan_totals(runs: list[PlannedRun], workers: int = 1, target: Machine = LOCAL_CPU) -> dict[str, Any]:
    """Totals of a plan for `target`: runs, stacks of several, tokens, FLOPs, PF-days, worker-seconds, wall seconds on
    `workers` that take the stacks in turn, and what the time rests on."""
    items = [sum(run.costs["seconds"] for run in members) for members in in_order(runs)]
    flops = sum(run.costs["flops"] for run in runs)
    measured = sum(bool(run.costs["measured"]) for run in runs)
    basis = "measured on this machine"
    if not runs or measured < len(runs):
        basis = target.assumption({run.spec.precision for run in runs})
    if 0 < measured < len(runs):
        basis = f"{measured} of {len(runs)} runs measured on this machine, the others {basis}"
    return {
        "runs": len(runs),
        "stacks": len({run.stack for run in runs} - {None}),
        "stacked_runs": sum(run.stack is not None for run in runs),
        "tokens": sum(run.costs["tokens"] for run in runs),
        "flops": flops,
        "pf_days": flops / PF_DAY,
        "worker_seconds": sum(items),
        "workers": workers,
        "wall_seconds": seconds_to_end(items, workers),
        "time_basis": basis,
    }


def plan_table(runs: list[PlannedRun]) -> Table:
    """The plan as a table to print: first digits of the run_id, shape, costs and what the axes usually are. Of more
    than LISTED runs the first and the last ones."""
    from rich.table import Table

    left_out = max(0, len(runs) - LISTED)
    caption = f"{left_out:,} runs between them are not listed; --json FILE has all" if left_out else None
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    table.add_column("run", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for heading in ("N", "batch", "D", "steps", "lr", "seed", "FLOPs", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    stacked = any(run.stack is not None for run in runs)
    if stacked:
        table.add_column("stack", justify="right", no_wrap=True)
    for run in [*runs[: LISTED // 2], *runs[-(LISTED // 2) :]] if left_out else runs:
        spec, costs = run.spec, run.costs
        table.add_row(
            run.run_id[:8],
            describe(spec.model),
            f"{costs['params']:.4g}" if costs["params"] >= 1e7 else f"{costs['params']:,.0f}",
            f"{spec.batch_tokens:,}",
            f"{costs['tokens']:.2e}",
            f"{spec.steps:,}",
            f"{spec.optimizer.lr:.3g}",
            str(spec.seed),
            f"{costs['flops']:.2e}",
            duration(costs["seconds"]),
            *(["" if run.stack is None else str(run.stack)] if stacked else []),
        )
    return table


def duration(seconds: float) -> str:
    """Seconds for people: 42s, 7m 05s, 3h 20m, 12d 4h, 3.1y."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds) // 60}m {int(seconds) % 60:02d}s"
    if minutes < 60 * 24:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    days = seconds / 86400
    return f"{int(days)}d {int(days % 1 * 24)}h" if days < 365 else f"{days / 365.25:.3g}y"
