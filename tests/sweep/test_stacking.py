"""Grouping of runs into stacks: nothing lost, only what is alike, within memory, and no worker left without work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.accounting import count_params
from sweep.compose import compose
from sweep.config import launcher_config, read_config
from sweep.estimate import MEMORY, Machine, estimate_seconds, stack_phases
from sweep.ladder import activation_bytes
from sweep.plan import plan_one, plan_sweep, plan_table, plan_totals, read_plan, write_plan
from sweep.schema import InputError
from sweep.spec import PlannedRun
from sweep.stacking import CLEARLY, PASS_TOKENS, RUN_BYTES, group, in_order, seconds_to_end, stacks

CPU = Machine("cpu", "cpu")
GPU = Machine("cuda", "h100")
Plan = Callable[..., PlannedRun]
CELLS = st.lists(
    st.fixed_dictionaries(
        {
            "d_model": st.sampled_from([16, 16, 64]),
            "sequences": st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24, 64, 128]),
            "steps": st.integers(5, 2000),
            "priority": st.sampled_from([0, 0, 1]),
            "name": st.sampled_from(["adamw"] * 4 + ["adafactor"]),
        }
    ),
    min_size=1,
    max_size=30,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of this machine must not reach a test."""
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path_factory.getbasetemp() / "no measurements"))


def planned(plan_tiny: Plan, cells: Sequence[dict[str, Any]], target: Machine) -> list[PlannedRun]:
    """Runs of these cells with their costs, each by another seed."""
    runs = []
    for seed, cell in enumerate(cells):
        cell = dict(cell)
        priority = cell.pop("priority", 0)
        micro = cell["sequences"] if target.device == "cpu" else None
        width = {"d_ff": 4 * cell["d_model"], "n_head": cell["d_model"] // 8} if "d_model" in cell else {}
        run = plan_tiny(seed=seed, execution={"micro_batch": micro} | cell.pop("execution", {}), **width, **cell)
        [seconds], _ = estimate_seconds([run], target, {})
        runs.append(dataclasses.replace(run, priority=priority, costs={"seconds": seconds, "measured": 0.0}))
    return runs


def timed(runs: Sequence[PlannedRun], target: Machine) -> list[float]:
    """Seconds of the stacks of `runs`, as they start."""
    return [sum(estimate_seconds(members, target, {})[0]) for members in in_order(runs)]


@given(CELLS, st.sampled_from([1, 2, 3, 8, 64]), st.sampled_from([CPU, GPU]))
@settings(deadline=None)
def test_groups(plan_tiny: Plan, cells: list[dict[str, Any]], workers: int, target: Machine) -> None:
    runs = planned(plan_tiny, cells, target)
    found = group(runs, workers, target)
    assert [run.run_id for run in found] == [run.run_id for run in runs]
    numbers = [run.stack for run in found if run.stack is not None]
    assert list(dict.fromkeys(numbers)) == list(range(len(set(numbers))))
    for members in stacks(found):
        if len(members) == 1:
            assert members[0] == dataclasses.replace(runs[found.index(members[0])], stack=None)
            continue
        model = members[0].spec.model
        assert {run.spec.optimizer.name for run in members} == {"adamw"}
        assert len({(run.spec.model, run.priority) for run in members}) == 1
        assert len(members) * RUN_BYTES * count_params(model).total <= MEMORY[target.kind] / 2
        for phase in stack_phases(members):
            tokens = phase.runs * phase.micro * model.n_ctx
            assert tokens <= PASS_TOKENS[target.device]
            assert tokens * activation_bytes(model) <= MEMORY[target.kind] / 2
        for run in members:
            assert run.spec.batch_sequences % (run.execution.micro_batch or 0) == 0
        one_by_one = sum(run.costs["seconds"] for run in runs if run.run_id in {member.run_id for member in members})
        assert sum(estimate_seconds(members, target, {})[0]) < one_by_one
    # by themselves they would not end sooner
    alone, together = timed(runs, target), timed(found, target)
    assert sum(together) <= sum(alone) * (1 + 1e-9)
    assert CLEARLY * seconds_to_end(together, workers) <= seconds_to_end(alone, workers) * (1 + 1e-9)


def test_what_may_not_share_a_stack_stays_alone(plan_tiny: Plan) -> None:
    def grouped(cells: list[dict[str, Any]], target: Machine = CPU) -> int:
        return len(stacks(group(planned(plan_tiny, cells, target), 1, target)))

    same: list[dict[str, Any]] = [{"sequences": 2}, {"sequences": 4}]
    assert grouped(same) == 1
    for change in (
        {"n_layer": 3},
        {"family": "llama"},
        {"priority": 1},
        {"precision": "bf16"},
        {"weight_average": 0.1},
        {"execution": {"threads": 2}},
        {"execution": {"compile": True}},
    ):
        assert grouped([same[0], same[1] | change]) == 2
    assert grouped([each | {"execution": {"shard_above": 1000.0}} for each in same]) == 2
    assert grouped([each | {"name": "adafactor"} for each in same]) == 2
    assert grouped(same, GPU) == 1
    assert grouped(same, dataclasses.replace(GPU, ranks=2)) == 2
    assert grouped([same[0], same[1] | {"lr": 3e-3, "beta2": 0.99, "weight_decay": 0.0, "steps": 7}]) == 1


def test_batches_that_would_hold_each_other_up_keep_apart(plan_tiny: Plan) -> None:
    cells = [{"sequences": sequences, "steps": 9600 // sequences} for sequences in (2, 3, 4, 8, 9, 16)]
    found = group(planned(plan_tiny, cells, CPU), 1, CPU)
    assert [[run.spec.batch_sequences for run in members] for members in stacks(found)] == [[2, 4, 8, 16], [3, 9]]


def test_a_given_micro_batch_stays(plan_tiny: Plan) -> None:
    cells: list[dict[str, Any]] = [{"sequences": 4, "execution": {"micro_batch": 2}}] * 5
    found = group(planned(plan_tiny, cells, CPU), 1, CPU, keep_micro=True)
    assert [(run.stack, run.execution.micro_batch) for run in found] == [(0, 2)] * 5


def test_runs_that_stay_longer_get_larger_passes(plan_tiny: Plan) -> None:
    cells = [{"sequences": 2048, "steps": steps} for steps in (100, 200, 300, 400, 500, 600, 700, 800)]
    found = group(planned(plan_tiny, cells, GPU), 1, GPU)
    assert {run.stack for run in found} == {0}
    assert [run.execution.micro_batch for run in found] == [512, 512, 512, 512, 1024, 1024, 2048, 2048]
    assert [(phase.runs, phase.micro) for phase in stack_phases(found)] == list(
        zip(range(8, 0, -1), [512, 512, 512, 512, 1024, 1024, 2048, 2048], strict=True)
    )


def test_large_batches_on_a_cpu_have_nothing_to_gain_and_hold_up_nobody(plan_tiny: Plan) -> None:
    cells = [{"d_model": 64, "sequences": 128, "steps": 100 + seed} for seed in range(4)]
    small = [{"d_model": 64, "sequences": 1, "steps": 1000 + seed} for seed in range(4)]
    found = group(planned(plan_tiny, cells + small, CPU), 1, CPU)
    assert [run.stack for run in found] == [None] * 4 + [0] * 4
    assert {run.stack for run in group(planned(plan_tiny, cells, GPU), 1, GPU)} == {0}


def test_equal_runs_are_divided_evenly_over_the_workers(plan_tiny: Plan) -> None:
    runs = planned(plan_tiny, [{"sequences": 2, "steps": 1000}] * 24, CPU)
    for workers in (1, 2, 4):
        assert [len(members) for members in stacks(group(runs, workers, CPU))] == [24 // workers] * workers
    assert {run.stack for run in group(runs, 24, CPU)} == {None}
    # on a cluster, short stacks are one job anyway
    assert len(stacks(group(runs, 24, CPU, least_seconds=1e6))) == 1


def test_shares_of_a_stack_are_its_time(plan_tiny: Plan) -> None:
    runs = planned(plan_tiny, [{"sequences": 2, "steps": 40}, {"sequences": 4, "steps": 40}], CPU)
    shares, _ = estimate_seconds(runs, CPU, {})
    phases = stack_phases(runs)
    assert [(phase.runs, phase.micro, phase.passes) for phase in phases] == [(2, 2, 40), (1, 4, 20)]
    assert shares[0] < runs[0].costs["seconds"]
    assert sum(shares) < sum(run.costs["seconds"] for run in runs)
    assert shares == estimate_seconds(runs[::-1], CPU, {})[0][::-1]


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 8))
def test_the_end_of_a_queue(items: list[float], workers: int) -> None:
    end = seconds_to_end(items, workers)
    assert max([0.0, *items, sum(items) / workers]) <= end * (1 + 1e-9) + 1e-9
    assert end <= sum(items) / workers + max(items, default=0.0) + 1e-9


def quick(workers: int, *overrides: str) -> list[PlannedRun]:
    fixed = ["experiment=quick", "launcher.device=cpu", f"launcher.workers={workers}"]
    return plan_sweep(compose("sweep", [*fixed, *overrides]))


@pytest.mark.parametrize("workers", [1, 2])
def test_groups_of_quick(workers: int) -> None:
    runs = quick(workers)
    together = [members for members in stacks(runs) if len(members) > 1]
    assert sorted(members[0].spec.model.d_model for members in together) == [16, 32]
    # of both sizes with a batch axis at least the small batches, which have the most calls to share
    stacked = {(run.spec.model.d_model, run.spec.batch_sequences) for members in together for run in members}
    assert stacked >= {(width, batch) for width in (16, 32) for batch in (2, 4, 8)}
    totals = plan_totals(runs, workers)
    assert totals["wall_seconds"] < 1.05 * totals["worker_seconds"] / workers
    assert totals["worker_seconds"] < sum(run.costs["seconds"] for run in quick(workers, "launcher.stack=off"))


def test_quick_on_many_workers_is_as_fast_as_its_longest_run() -> None:
    runs = quick(64)
    assert plan_totals(runs, 64)["wall_seconds"] == max(run.costs["seconds"] for run in runs if run.stack is None)


def test_stacking_can_be_turned_off() -> None:
    for text in ("launcher.stack=off", "launcher.stack=false"):
        assert {run.stack for run in quick(2, text)} == {None}
    values = compose("sweep", [])["launcher"]
    for said, read in ((True, "on"), (False, "off"), ("on", "on"), ("off", "off")):
        assert launcher_config(values | {"stack": said}).stack == read
    with pytest.raises(InputError, match=r"launcher.stack must be one of on, off, not 'some'"):
        quick(2, "launcher.stack=some")
    assert plan_one(compose("train", ["horizon.steps=50", "launcher.device=cpu"])).stack is None
    del values["stack"]  # of a submission by an earlier version
    assert launcher_config(values).stack == "on"


def test_stacks_are_written_and_read_back_and_older_plans_have_none(tmp_path: Path) -> None:
    runs, path = quick(2), tmp_path / "plan.jsonl"
    write_plan(path, runs)
    assert read_plan(path) == runs
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["stack"], line["priority"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_plan(path) == [dataclasses.replace(run, stack=None) for run in runs]


def test_the_table_shows_stacks_where_there_are_any() -> None:
    stacked = plan_table(quick(2)).columns
    assert stacked[-1].header == "stack"
    assert [str(run.stack) if run.stack is not None else "" for run in quick(2)] == list(stacked[-1].cells)
    assert plan_table(quick(2, "launcher.stack=off")).columns[-1].header == "time"


def test_priorities() -> None:
    seeds = {"product": {"seed": [0, 1, 2]}, "priority": 2}
    blocks = {
        "late": seeds,
        "first": {"product": {"seed": [2, 3]}, "priority": -1},
        "usual": {"product": {"seed": [4]}},
    }
    config = compose(
        "sweep",
        ["launcher.device=cpu", "launcher.workers=1", "horizon.steps=50", "batch_tokens=256", "data.test_tokens=1024"],
    )
    runs = plan_sweep({**config, "grid": {"blocks": blocks}})
    assert [(run.spec.seed, run.priority) for run in runs] == [(0, 2), (1, 2), (2, -1), (3, -1), (4, 0)]
    assert [[run.spec.seed for run in members] for members in in_order(runs)] == [[2, 3], [4], [0, 1]]
    plain = plan_sweep({**config, "grid": {"blocks": {"all": {"product": {"seed": [0, 1, 2, 3, 4]}}}}})
    assert [run.run_id for run in plain] == [run.run_id for run in runs]
    with pytest.raises(InputError, match=r"grid.blocks.late.priority must be int, not 'soon'"):
        read_config({**config, "grid": {"blocks": {"late": {"priority": "soon"}}}})
