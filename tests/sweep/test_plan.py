"""From configurations to planned runs: horizons, rates, schedules, identity, costs, and plan.jsonl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep import estimate
from sweep.compose import compose
from sweep.config import HorizonConfig
from sweep.measure import measure
from sweep.plan import (
    LISTED,
    duration,
    plan_offsets,
    plan_one,
    plan_sweep,
    plan_table,
    plan_totals,
    read_plan,
    read_run,
    write_plan,
)
from sweep.resolve import resolve_steps
from sweep.schema import PF_DAY, InputError
from sweep.spec import PlannedRun, RunSpec

HEAVY = ("torch", "transformers", "datasets", "wandb", "pandas", "matplotlib")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of this machine must not reach a test."""
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path / "cache"))


def one(*overrides: str) -> RunSpec:
    """The run that `isoloss train` would train, on a CPU."""
    return plan_one(compose("train", ["launcher.device=cpu", *overrides])).spec


def grid(blocks: dict[str, Any], *overrides: str) -> list[PlannedRun]:
    config = compose("sweep", ["launcher.device=cpu", "horizon.steps=50", *overrides])
    return plan_sweep({**config, "grid": {"blocks": blocks}})


@pytest.mark.parametrize(
    ("horizon", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": 10_000}, 39),  # 39.06
        ({"tokens": 10_200}, 40),  # 39.84
        ({"tokens": 1}, 1),
        ({"tokens_per_param": 20}, 78_125),
        ({"flops": 6e9}, 4),  # 6 N = 6e6 FLOPs per token
        ({"tokens_at_small_batch": 1e5, "batch_guess": 128}, 1172),  # 3e5 tokens
        ({}, 78_125),
    ],
)
def test_horizons(horizon: dict[str, Any], steps: int) -> None:
    assert resolve_steps(HorizonConfig(**horizon), params=10**6, batch_tokens=256) == steps


@pytest.mark.parametrize(
    ("horizon", "complaint"),
    [
        ({"steps": 7, "tokens": 1e6}, "steps and tokens are both set"),
        ({"flops": -1.0}, "horizon.flops must be positive"),
        ({"tokens_at_small_batch": 1e5}, "positive horizon.batch_guess"),
    ],
)
def test_unusable_horizons(horizon: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        resolve_steps(HorizonConfig(**horizon), params=10**6, batch_tokens=256)


def test_batches_get_tokens_in_proportion_to_one_plus_b_over_the_guess() -> None:
    runs = grid(
        {"run": {"product": {"batch_tokens": [256, 4096, 16384]},
                 "set": {"horizon.tokens_at_small_batch": 1e6, "horizon.batch_guess": 4096}}}
    )  # fmt: skip
    tokens = [run.spec.tokens / 1e6 for run in runs]
    assert tokens == pytest.approx([1.0625, 2.0, 5.0], rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["batch_tokens=1000"], r"1000 is not a multiple of model.n_ctx 128; the nearest are 896 and 1024"),
        (["batch_tokens=100"], r"100 is not a multiple of model.n_ctx 128; the nearest is 128$"),
        (["batch_tokens=0"], "batch_tokens must be positive, not 0"),
        (["seed=-1"], "seed must not be negative, but is -1"),
        (["execution.threads=0"], "execution.threads must be at least 1, not 0"),
        (["execution.eval_points_per_decade=0"], "execution.eval_points_per_decade must be at least 1"),
        (["execution.eval_tail=-1"], "execution.eval_tail must be at least 0"),
        (["execution.checkpoint_seconds=-1"], "execution.checkpoint_seconds must be at least 0"),
        (["execution.micro_batch=0"], "execution.micro_batch must be at least 1"),
        (["model.shape=2x40"], "40 is not divisible by model.d_head 16"),
        (["optimizer.beta2_half_life_tokens=1e5", "optimizer.beta2=0.9"], "exactly one of optimizer.beta2"),
        (["schedule.warmup_steps=null"], "exactly one of warmup_steps, warmup_tokens, warmup_fraction; none is set"),
        (["schedule.warmup_steps=9", "horizon.steps=8"], "warm-up 9 .* exceed the schedule's 8"),
        (["schedule.steps=10", "horizon.steps=50"], "schedule.steps 10 ends before the run's 50"),
        (["execution.micro_batch=5"], "micro_batch 5 does not divide the batch of 16 sequences"),
        (["model.vocab_size=100"], "vocab_size 100 differs from data's 256"),
        (["optimizer.lr=0"], "lr must be positive"),
    ],
)
def test_what_cannot_be_run_is_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        one(*overrides)


def test_learning_rates() -> None:
    assert one("optimizer.lr=1.23e-3").optimizer.lr == 1.23e-3
    rule = [f"optimizer.lr_rule.{key}" for key in ("lr=8e-3", "width_power=-1", "batch_power=0.5")]
    scaled = one("model.shape=2x64", "batch_tokens=8192", "optimizer.lr_factor=2", "horizon.steps=50", *rule)
    assert scaled.optimizer.lr == pytest.approx(8e-3 * 2**-1 * 2 * 2, rel=1e-5)
    assert scaled.optimizer.lr == float(f"{scaled.optimizer.lr:.5e}")
    assert one("optimizer.lr_rule.name=kaplan").optimizer.lr == pytest.approx(1.829e-3, rel=1e-3)


def test_beta2_by_half_life() -> None:
    assert one("optimizer.beta2_half_life_tokens=20480").optimizer.beta2 == pytest.approx(0.5**0.1, rel=1e-5)


def test_schedules_resolve_to_steps() -> None:
    assert one("schedule.warmup_tokens=20480", "horizon.steps=100").schedule.warmup_steps == 10
    wsd = one("schedule=wsd", "horizon.steps=200", "schedule.warmup_fraction=0.1").schedule
    assert (wsd.warmup_steps, wsd.decay_steps, wsd.schedule_steps, wsd.decay_shape) == (20, 40, 200, "sqrt")
    kaplan = one("schedule=kaplan", "horizon.steps=1000").schedule
    assert (kaplan.name, kaplan.warmup_steps, kaplan.schedule_steps, kaplan.final) == ("cosine", 3000, 250_000, 0)


def test_only_science_changes_the_run_id() -> None:
    run = one("horizon.steps=100")
    assert one("horizon.steps=100", "execution.micro_batch=2", "launcher.threads=4", "sweep_dir=x") == run
    assert one("horizon.tokens=204800").run_id == run.run_id
    assert one("horizon.steps=100.0", "batch_tokens=2048.0").run_id == run.run_id
    assert one("horizon.steps=100", "seed=1").run_id != run.run_id
    assert (
        len({run.run_id} | {one("horizon.steps=100", key).run_id for key in ("weight_average=0.1", "precision=bf16")})
        == 3
    )


def test_cells_that_ask_for_the_same_run_give_one() -> None:
    runs = grid({"a": {"product": {"seed": [0, 1]}}, "b": {"product": {"seed": [1, 2], "model.shape": ["2x32"]}}})
    assert [run.spec.seed for run in runs] == [0, 1, 2]


def test_a_plan_is_the_same_every_time() -> None:
    first, second = (plan_sweep(compose("sweep", ["experiment=quick"])) for _ in range(2))
    assert first == second


def test_where_filters_by_what_a_cell_resolves_to() -> None:
    block = {"product": {"model.shape": ["2x16", "2x32", "4x64"], "seed": [0, 1]}, "where": "params * tokens < 3e9"}
    runs = grid({"run": block})
    assert {(run.spec.model.d_model, run.spec.seed) for run in runs} == {(16, 0), (16, 1), (32, 0), (32, 1)}
    with pytest.raises(InputError, match=r"grid.blocks.run has no run: .*tokens < 1"):
        grid({"run": {**block, "where": "tokens < 1"}})


def test_errors_name_the_cell() -> None:
    with pytest.raises(InputError, match=r"grid block odd: .*model.shape=2x40"):
        grid({"fine": {}, "odd": {"product": {"model.shape": ["2x32", "2x40"]}}})
    with pytest.raises(InputError, match=r"model.shape"):
        grid({"odd": {"product": {"model.shape": [[2, 32]]}}})
    with pytest.raises(InputError, match=r"unknown key grid.blocks.odd.products; did you mean product"):
        grid({"odd": {"products": {}}})


def test_one_run_is_not_several() -> None:
    with pytest.raises(InputError, match="asks for 8 runs"):
        plan_one(compose("sweep", ["experiment=smoke"]))


def test_micro_batch_comes_from_the_plan_on_a_cpu_and_from_the_trainer_on_a_gpu() -> None:
    def planned(*overrides: str) -> PlannedRun:
        return plan_one(compose("train", ["batch_tokens=16384", "horizon.steps=50", *overrides]))

    assert planned("launcher.device=cpu").execution.micro_batch == 16
    assert planned("launcher.device=cuda").execution.micro_batch is None
    assert planned("launcher.device=cuda", "execution.micro_batch=64").execution.micro_batch == 64


def test_costs_and_totals() -> None:
    runs = grid({"run": {"product": {"model.shape": ["2x32", "4x64"]}}})
    tokens = 50 * 2048
    assert [run.costs["flops"] for run in runs] == [6 * 24_576 * tokens, 6 * 196_608 * tokens]
    totals = plan_totals(runs, workers=2)
    assert totals["runs"] == 2
    assert totals["tokens"] == 2 * tokens
    assert totals["flops"] == totals["pf_days"] * PF_DAY == sum(run.costs["flops"] for run in runs)
    # one run is much the longer, so two workers cannot halve the time
    assert totals["wall_seconds"] == runs[1].costs["seconds"] > totals["worker_seconds"] / 2
    assert totals["time_basis"].startswith("assumed")


def test_a_cached_measurement_sets_the_time() -> None:
    before = grid({"run": {"product": {"model.shape": ["2x32", "4x64"]}}})
    [phase] = estimate.stack_phases(before[:1])
    estimate.write_measurements({estimate.measurement_key(before[0], phase, "cpu"): 0.5})
    after = grid({"run": {"product": {"model.shape": ["2x32", "4x64"]}}})
    # fifty passes and, in the evaluations, the forward third of some more
    assert 25 < after[0].costs["seconds"] < 60 + 0.5 * 30 * 65536 / 2048 / 3
    assert after[1].costs["seconds"] == before[1].costs["seconds"]
    assert [run.run_id for run in after] == [run.run_id for run in before]
    assert plan_totals(after)["time_basis"].startswith("1 of 2 runs measured")
    assert plan_totals(after[:1])["time_basis"] == "measured on this machine"
    estimate.measurements_file().write_text("{broken")
    assert grid({"run": {"product": {"model.shape": ["2x32", "4x64"]}}}) == before


def test_measuring_trains_each_shape_once_and_is_used() -> None:
    shapes = {"run": {"product": {"model.shape": ["1x8", "1x16"], "seed": [0, 1]}}}
    lines: list[str] = []
    small = ("model.d_head=8", "model.n_ctx=16", "batch_tokens=64", "data.test_tokens=64")
    measured = measure(grid(shapes, *small), "cpu", lines.append)
    assert len(measured) == len(lines) == 2
    assert all(seconds > 0 for seconds in measured.values())
    runs = grid(shapes, *small)
    assert all(run.costs["measured"] for run in runs)
    assert plan_totals(runs)["time_basis"] == "measured on this machine"


def test_plans_are_written_and_read_back(tmp_path: Path) -> None:
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    path = tmp_path / "sweep" / "plan.jsonl"
    write_plan(path, runs)
    assert read_plan(path) == runs
    assert json.loads(path.read_text().splitlines()[0])["run_id"] == runs[0].run_id
    assert list(path.parent.iterdir()) == [path]  # nothing half-written is left


def test_a_run_is_read_by_the_offset_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    write_plan(path, runs)
    offsets = plan_offsets(path)
    assert list(offsets) == [run.run_id for run in runs]
    assert [read_run(path, offset, run_id) for run_id, offset in offsets.items()] == runs
    first, second, *_ = offsets
    with pytest.raises(InputError, match=f"byte {offsets[second]}: run {second} instead of {first}"):
        read_run(path, offsets[second], first)
    for inside in (offsets[second] + 1, 10**9):
        with pytest.raises(InputError, match=f"byte {inside} is not JSON of a run"):
            read_run(path, inside, second)
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(InputError, match="was edited"):
        [read_run(path, offset, run_id) for run_id, offset in offsets.items()]
    path.write_text("[]\n")
    with pytest.raises(InputError, match="byte 0 is not JSON of a run"):
        read_run(path, 0, first)
    with pytest.raises(InputError, match=r"plan.jsonl:1 does not start with a run_id"):
        plan_offsets(path)
    with pytest.raises(InputError, match="no plan at"):
        plan_offsets(tmp_path / "none.jsonl")


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    with pytest.raises(InputError, match="no plan at"):
        read_plan(path)
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    write_plan(path, runs)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(InputError, match=rf"plan.jsonl:{len(runs)} is not JSON"):
        read_plan(path)
    path.write_text(whole.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(InputError, match="was edited"):
        read_plan(path)


def test_table_shows_every_run() -> None:
    runs = plan_sweep(compose("sweep", ["experiment=quick"]))
    table = plan_table(runs)
    assert table.row_count == len(runs)
    assert list(table.columns[0].cells) == [run.run_id[:8] for run in runs]
    assert table.caption is None


def test_table_of_very_many_runs_shows_the_first_and_the_last() -> None:
    runs = grid({"run": {"product": {"seed": list(range(LISTED + 7))}}})
    table = plan_table(runs)
    shown = [*runs[: LISTED // 2], *runs[-(LISTED // 2) :]]
    assert list(table.columns[0].cells) == [run.run_id[:8] for run in shown]
    assert str(table.caption).startswith("7 runs")
    assert plan_table(runs[:LISTED]).row_count == LISTED


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0s"), (9.96, "10.0s"), (42, "42s"), (425, "7m 05s"), (12_000, "3h 20m"), (360_000, "4d 4h"),
     (86_400 * 365.25 * 3, "3y")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sweep.compose import compose\n"
        "from sweep.plan import plan_sweep, plan_table, plan_totals\n"
        "runs = plan_sweep(compose('sweep', ['experiment=quick']))\n"
        "plan_table(runs), plan_totals(runs)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
