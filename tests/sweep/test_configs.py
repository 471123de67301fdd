"""Every configuration that is shipped composes, plans and costs, and the experiments are what they say."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from table_a9 import ARCHITECTURES

from sweep.accounting import count_params
from sweep.compose import compose, packaged_configs
from sweep.config import read_config
from sweep.plan import plan_one, plan_sweep, plan_totals
from sweep.spec import PlannedRun

CONFIGS = packaged_configs()
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
OPTIONS = [
    (path.parent.name, path.stem)
    for path in sorted(CONFIGS.glob("*/*.yaml"))
    if path.parent.name not in ("experiment", "grid") and path.stem != "common"
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of this machine must not reach a test."""
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path))


def runs_of(experiment: str, *overrides: str) -> list[PlannedRun]:
    return plan_sweep(compose("sweep", [f"experiment={experiment}", *overrides]))


def test_the_experiments_are_there() -> None:
    assert {"quick", "smoke", "lr_scan", "kaplan", "critical_batch", "isoflop", "chinchilla"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_plans_and_costs(experiment: str) -> None:
    config = compose("sweep", [f"experiment={experiment}"])
    assert config["name"] == experiment
    assert config["sweep_dir"] == f"sweeps/{experiment}"
    runs = plan_sweep(config)
    for run in runs:
        model = run.spec.model
        assert run.costs["params"] == count_params(model).params
        assert run.costs["flops"] == pytest.approx(6 * run.costs["params"] * run.spec.tokens)
        assert run.costs["seconds"] > 0
        if model.family == "gpt2":
            assert run.costs["params"] == 12 * model.n_layer * model.d_model**2
    assert len({run.run_id for run in runs}) == len(runs) == plan_totals(runs)["runs"]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_plans(group: str, option: str) -> None:
    run = plan_one(compose("train", [f"{group}={option}", "horizon.steps=3000"]))
    assert run.spec.steps == 3000


def test_tracking_is_on_but_for_the_short_experiments() -> None:
    mirrored = {e: read_config(compose("sweep", [f"experiment={e}"])).tracking.name == "wandb" for e in EXPERIMENTS}
    assert not mirrored["quick"]
    assert not mirrored["smoke"]
    assert mirrored["kaplan"]
    assert mirrored["chinchilla"]


def test_quick_holds_enough_sizes_batches_and_seeds() -> None:
    runs = runs_of("quick")
    sizes = sorted({int(run.costs["params"]) for run in runs})
    assert len(sizes) >= 5
    assert math.log10(sizes[-1] / sizes[0]) >= 1.5
    batches = {size: {r.spec.batch_tokens for r in runs if r.costs["params"] == size} for size in sizes}
    wide = [size for size in sizes if len(batches[size]) >= 5 and max(batches[size]) >= 32 * min(batches[size])]
    assert len(wide) >= 2
    for size in sizes[:2]:
        cells = Counter(
            (run.spec.batch_tokens, run.spec.steps, run.spec.optimizer.lr)
            for run in runs
            if run.costs["params"] == size
        )
        assert max(cells.values()) >= 3, f"N = {size} has no cell with three seeds"
    assert {run.spec.data.source for run in runs} == {"python"}
    assert {run.spec.schedule.name for run in runs} == {"constant"}
    assert len({run.spec.schedule.warmup_steps for run in runs}) == 1
    assert max(run.spec.tokens for run in runs) < 1.1e7  # one pass over the standard library's training split


def test_quick_can_be_trained_in_minutes() -> None:
    seconds = plan_totals(runs_of("quick", "launcher.device=cpu"))["worker_seconds"]
    assert seconds < 900  # by the stated assumption; eight minutes of two cores are 960


def test_lr_scan_goes_around_the_rule_of_quick() -> None:
    quick = {(r.costs["params"], r.spec.batch_tokens): r.spec.optimizer.lr for r in runs_of("quick")}
    scanned: dict[tuple[float, int], list[float]] = {}
    for run in runs_of("lr_scan"):
        scanned.setdefault((run.costs["params"], run.spec.batch_tokens), []).append(run.spec.optimizer.lr)
    assert set(scanned) <= set(quick)
    assert len(scanned) >= 5
    for cell, rates in scanned.items():
        factors = sorted(rate / quick[cell] for rate in rates)
        assert min(factors) <= 0.5
        assert max(factors) >= 2
        assert [b / a for a, b in pairwise(factors)] == pytest.approx([2] * (len(factors) - 1), rel=1e-4)


def test_kaplan_is_the_paper_s_sweep() -> None:
    runs = runs_of("kaplan")
    params = [run.costs["params"] for run in runs]
    assert min(params) == 768
    assert max(params) == pytest.approx(1.5e9, rel=0.02)
    shapes = {(run.spec.model.n_layer, run.spec.model.d_model) for run in runs}
    assert {(2, 128), (6, 4288), (207, 768)} <= shapes
    for run in runs:
        spec = run.spec
        assert (spec.batch_tokens, spec.steps, spec.model.n_ctx, spec.model.vocab_size) == (2**19, 250_000, 1024, 50257)
        assert (spec.schedule.name, spec.schedule.warmup_steps, spec.schedule.final) == ("cosine", 3000, 0.0)
        assert spec.optimizer.name == ("adafactor" if run.costs["params"] > 1e9 else "adamw")
        assert spec.optimizer.lr == pytest.approx(0.003239 - 0.0001395 * math.log(run.costs["params"]), rel=1e-5)


def test_critical_batch_is_two_sizes_by_powers_of_two_by_rates() -> None:
    runs = runs_of("critical_batch")
    assert len({run.costs["params"] for run in runs}) == 2
    batches = sorted({run.spec.batch_tokens for run in runs})
    assert [b / a for a, b in pairwise(batches)] == [2] * (len(batches) - 1)
    assert len(batches) >= 7
    cells = Counter((run.costs["params"], run.spec.batch_tokens) for run in runs)
    assert sorted(cells.values()) == [3] * 12 + [5] * 2  # rates, and at one batch of each size two more seeds
    assert sorted({run.spec.seed for run in runs}) == [0, 1, 2]
    assert max(run.spec.tokens for run in runs) < 1.1e7


def test_isoflop_budgets_are_kept() -> None:
    by_budget: dict[float, list[PlannedRun]] = {}
    for run in runs_of("isoflop"):
        by_budget.setdefault(float(f"{run.costs['flops']:.0e}"), []).append(run)
    assert set(by_budget) == {1e11, 3e11, 1e12, 3e12}
    for budget, runs in by_budget.items():
        assert len({run.costs["params"] for run in runs}) >= 5  # a parabola through five points
        assert all(run.costs["flops"] == pytest.approx(budget, rel=0.01) for run in runs)
    assert sorted({run.spec.seed for run in by_budget[1e11]}) == [0, 1, 2]


def test_chinchilla_has_every_architecture_of_table_a9() -> None:
    runs = runs_of("chinchilla")
    shapes = {(m.d_model, m.d_head, m.n_head, m.n_layer): m for m in (run.spec.model for run in runs)}
    assert set(shapes) == {(d_model, d_head, n_head, layers) for _, d_model, _, d_head, n_head, layers in ARCHITECTURES}
    for _, d_model, d_ff, d_head, n_head, layers in ARCHITECTURES:
        swiglu = count_params(shapes[d_model, d_head, n_head, layers]).mlp
        assert swiglu == pytest.approx(layers * 2 * d_model * d_ff, rel=0.004)
    budgets = {float(f"{run.costs['flops']:.0e}") for run in runs}
    assert {6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21} <= budgets
    assert len(runs) > 400  # as in the paper
    assert all(run.spec.schedule.final == 0.1 and run.spec.schedule.schedule_steps == run.spec.steps for run in runs)
    rates = [run.spec.optimizer.lr for run in runs]
    assert (max(rates), min(rates)) == pytest.approx((2e-4, 1.25e-4), rel=1e-3)


def test_printed_sizes_stand_beside_the_architectures() -> None:
    text = (CONFIGS / "grid" / "chinchilla.yaml").read_text()
    printed = re.findall(r"n_layer: (\d+), model.d_model: (\d+), .*# (\d+)M", text)
    assert [(int(size), int(width), int(layers)) for layers, width, size in printed] == [
        (size, width, layers) for size, width, _, _, _, layers in ARCHITECTURES
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ")
    assert all(len(line) <= 120 for line in lines)
