"""The experiments `h100` and `h100_small`: what the first promises, and that the second is made of the same blocks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.tables.coverage import WIDE_GRID
from sweep.batches import check_epochs
from sweep.compose import compose
from sweep.config import Block, flatten, grid_blocks
from sweep.plan import plan_sweep, plan_totals
from sweep.schema import PF_DAY, InputError
from sweep.spec import PlannedRun
from sweep.stacking import in_order

Runs = list[PlannedRun]
SITE_PACKAGES = 165_000_000  # tokens to train on, of the Python packages of a machine


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measurements of this machine must not reach a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOLOSS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def plan(experiment: str, *overrides: str) -> Runs:
    return plan_sweep(compose("sweep", [f"experiment={experiment}", *overrides]))


@pytest.fixture(scope="module")
def runs() -> Runs:
    return plan("h100")


def by_cell(runs: Runs) -> dict[tuple[float, int, int, str], Runs]:
    """Runs that differ in learning rate and seed alone."""
    found: dict[tuple[float, int, int, str], Runs] = defaultdict(list)
    for run in runs:
        found[run.costs["params"], run.spec.batch_tokens, run.spec.steps, run.spec.schedule.name].append(run)
    return found


def decayed(runs: Runs) -> dict[float, Runs]:
    """Runs of the isoFLOP budgets, by budget in PF-days to two digits."""
    found: dict[float, Runs] = defaultdict(list)
    for run in runs:
        if run.spec.schedule.name == "cosine":
            found[10 ** (round(2 * math.log10(run.costs["flops"] / PF_DAY)) / 2)].append(run)
    return dict(sorted(found.items()))


def undecayed(runs: Runs) -> Runs:
    return [run for run in runs if run.spec.schedule.name == "constant"]


def test_sizes_and_compute_span_what_is_promised(runs: Runs) -> None:
    sizes = sorted({run.costs["params"] for run in runs})
    assert len(sizes) == 16
    assert (sizes[0], sizes[-1]) == (1536, 31_457_280)
    flops = [run.costs["flops"] / PF_DAY for run in runs]
    assert max(flops) == pytest.approx(1e-4, rel=0.01)
    assert min(run.costs["flops"] for run in runs) / PF_DAY == pytest.approx(1e-9, rel=0.1)
    assert math.log10(max(flops) / min(flops)) >= 4.98
    assert {run.spec.model.n_ctx for run in runs} == {256}
    assert {run.spec.precision for run in runs} == {"bf16"}


def test_budgets_are_half_a_decade_apart_with_sizes_on_either_side_of_the_best(runs: Runs) -> None:
    budgets = decayed(runs)
    assert [math.log10(b / a) for a, b in pairwise(budgets)] == pytest.approx([0.5] * 10)
    for budget, own in budgets.items():
        assert all(run.costs["flops"] == pytest.approx(budget * PF_DAY, rel=0.02) for run in own)
        ratios = sorted({run.spec.tokens / run.costs["params"] for run in own})
        assert len(ratios) >= 5
        assert ratios[0] < 12 < 250 < ratios[-1]  # tokens per parameter; on bytes the best lies near a hundred
        assert len({run.spec.batch_tokens for run in own}) == 1
        assert all(run.spec.schedule.schedule_steps == run.spec.steps >= 100 for run in own)
        assert {run.spec.schedule.final for run in own} == {0.1}
        assert {run.spec.weight_average for run in own} == {0.0}
    batches = [own[0].spec.batch_tokens for own in budgets.values()]
    assert batches == sorted(batches)


def test_neighbouring_sizes_are_near_enough_for_parabolas(runs: Runs) -> None:
    """Through the five sizes nearest to the best; wider, the loss is no parabola."""
    for own in decayed(runs).values():
        sizes = sorted({run.costs["params"] for run in own})
        assert max(b / a for a, b in zip(sizes, sizes[4:], strict=False)) <= WIDE_GRID


def test_curves_of_all_sizes_share_a_batch_and_overlap_in_compute(runs: Runs) -> None:
    own = [run for run in undecayed(runs) if run.spec.batch_tokens == 16384 and run.spec.seed == 0]
    ends = {run.costs["params"]: run.costs["flops"] for run in own}
    assert len(ends) == 16
    for (params, end), (larger, _) in zip(sorted(ends.items()), sorted(ends.items())[2:], strict=False):
        # Where a size ends, the size after the next has seen ten tokens a parameter, so that both can be compared.
        assert end / (6 * larger) > 10 * larger or end == pytest.approx(2.73e15, rel=0.4), params


def test_critical_batches_at_three_sizes(runs: Runs) -> None:
    batches: dict[float, set[int]] = defaultdict(set)
    for run in undecayed(runs):
        batches[run.costs["params"]].add(run.spec.batch_tokens)
    wide = {size: sorted(own) for size, own in batches.items() if len(own) > 1}
    assert sorted(wide) == [24_576, 196_608, 1_179_648]
    for own in wide.values():
        assert [b / a for a, b in pairwise(own)] == [2] * 6
        assert 16384 in own
    assert len({run.spec.schedule.warmup_steps for run in undecayed(runs)}) == 1


def test_learning_rates_are_tuned_below_the_largest_budget(runs: Runs) -> None:
    factors = {}
    for key, own in by_cell(runs).items():
        rates = sorted({run.spec.optimizer.lr for run in own})
        factors[key] = len(rates)
        assert [b / a for a, b in pairwise(rates)] == pytest.approx([2] * (len(rates) - 1), rel=1e-4)
    cosine = {key: n for key, n in factors.items() if key[3] == "cosine"}
    flops = {key: 6 * key[0] * key[1] * key[2] for key in cosine}
    assert all(n == (1 if flops[key] > 5e15 else 2 if flops[key] > 1.5e15 else 3) for key, n in cosine.items())
    assert sum(n == 1 for n in cosine.values()) == 5
    constant = {key: n for key, n in factors.items() if key[3] == "constant"}
    assert all(n >= (3 if key[0] < 3e5 or key[1] != 16384 else 2) for key, n in constant.items())
    assert sum(n == 5 for n in constant.values()) == 6  # the scan


def test_three_seeds_at_three_sizes_of_curves_and_of_budgets(runs: Runs) -> None:
    for schedule in ("constant", "cosine"):
        repeated = set()
        for (params, _, _, name), own in by_cell(runs).items():
            seeds = Counter(run.spec.optimizer.lr for run in own)
            if name == schedule and max(seeds.values()) >= 3:
                repeated.add(params)
        assert len(repeated) == 3


def test_the_most_valuable_cells_start_first(runs: Runs) -> None:
    stacks = in_order(runs)
    order = [min(run.priority for run in stack) for stack in stacks]
    assert order == sorted(order)
    scan = {run.run_id for stack in stacks for run in stack if run.priority == 0}
    assert {run.costs["params"] for run in runs if run.run_id in scan} <= {1536, 6144, 24_576, 196_608}
    critical = [run for run in runs if run.priority == 1]
    assert len({run.spec.batch_tokens for run in critical}) == 7
    tops = {budget: {run.priority for run in own} for budget, own in decayed(runs).items()}
    assert all(len(own) == 1 for own in tops.values())
    at = [own.pop() for own in tops.values()]
    assert at == sorted(at)
    assert at[0] > 1
    early = sum(run.costs["flops"] for run in runs if run.priority <= 4)  # up to 3e-6 PF-days
    assert early < 0.2 * sum(run.costs["flops"] for run in runs)


def test_most_runs_share_stacks(runs: Runs) -> None:
    alone = [run for run in runs if run.stack is None]
    assert len(alone) < len(runs) / 4
    assert min(run.costs["params"] for run in alone) > 5e5


def test_no_run_passes_over_the_text_more_than_four_times(runs: Runs) -> None:
    longest = max(runs, key=lambda run: run.spec.tokens)
    assert longest.source.site_packages
    assert longest.source.max_epochs == 4
    corpus = SimpleNamespace(
        train=np.broadcast_to(np.uint8(0), SITE_PACKAGES), test=np.broadcast_to(np.uint8(0), 10**6)
    )
    for run in runs:
        check_epochs(run.spec, run.source, corpus)  # type: ignore[arg-type]
    short = SimpleNamespace(train=corpus.train[: longest.spec.tokens // 5], test=corpus.test)
    with pytest.raises(InputError, match=r"more than data\.max_epochs 4"):
        check_epochs(longest.spec, longest.source, short)  # type: ignore[arg-type]


def test_it_takes_given_text(tmp_path: Path) -> None:
    own = plan("h100", "data=text", f"data.files=[{tmp_path}/*.txt]", "data.name=books", "data.max_epochs=4")
    assert {(run.spec.data.source, run.source.max_epochs) for run in own} == {("text", 4.0)}


def test_the_whole_costs_less_than_an_hour_of_an_h100(runs: Runs) -> None:
    """At the stated assumptions, by what is planned for one such GPU."""
    there = plan("h100", "launcher=slurm", "launcher.gpu_type=h100", "launcher.parallel=1")
    assert {run.run_id for run in there} == {run.run_id for run in runs}
    assert 600 < plan_totals(there)["worker_seconds"] < 3600


def blocks(experiment: str) -> dict[str, Block]:
    return grid_blocks(compose("sweep", [f"experiment={experiment}"]))


def test_the_small_one_has_the_same_blocks_at_a_thousandth_of_the_budgets(runs: Runs) -> None:
    large, small = blocks("h100"), blocks("h100_small")
    assert set(large) == set(small)
    for name, block in large.items():
        other = small[name]
        assert block.priority == other.priority, name
        assert block.product.get("optimizer.lr_factor") == other.product.get("optimizer.lr_factor"), name
        for part in ("product", "zip"):
            assert set(getattr(block, part)) == set(getattr(other, part)), name
        heads = {"model.n_head", "model.d_head"}
        keys, others = ({key for cell in b.cells for key in cell} - heads for b in (block, other))
        assert keys == others, name
        assert set(flatten(block.set)) - heads == set(flatten(other.set)) - heads, name
    little = plan("h100_small", "launcher.device=cpu")
    budgets, whole = decayed(little), decayed(runs)
    assert all(any(1000 * b == pytest.approx(w) for w in whole) for b in budgets)
    assert len(budgets) == 5
    assert all(len({run.costs["params"] for run in own}) >= 4 for own in budgets.values())
    assert len({run.costs["params"] for run in undecayed(little)}) == 7
    assert max(run.spec.tokens for run in little) < 1.1e7  # one pass over the standard library
    assert {run.spec.precision for run in little} == {"fp32"}
