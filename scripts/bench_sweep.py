#!/usr/bin/env python3
"""The same list of runs as stacked groups and as one process per run: wall time, start-up, compute, memory.

    scripts/bench_sweep.py                                   # the runs of experiment=quick at an eighth of their length
    scripts/bench_sweep.py --share 0.25 --minutes 25 --json bench_sweep.json
    scripts/bench_sweep.py experiment=smoke --where "batch_tokens >= 512" --rounds 1

Three ways, in turns, two processes at once, one thread each, imports included:

stacked  isoloss sweep with its workers, groups of runs trained as one model
single   one process per run by isoloss's own trainer, the longest first, without lease, Hydra and launcher
plain    one eager process per run by a loop over the transformers model, evaluated at the same steps on the same
         tokens: what a shell loop over a training script does

`ratio` is plain / stacked of all runs, wall time; `ratio_small_batch` that of the runs with batches of at most 16
sequences and a shape that several of them have, measured as sweeps of their own where that is not all runs.
`ratio_single` and `ratio_single_small_batch` are single / stacked: what stacks and shared processes alone bring,
without what isoloss's own training step brings. Horizons are shortened to a share, the same for all ways; warm-ups
stay. Ratios at whole horizons are computed from the measured start-up and compute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from benchmarks.arms import ARMS, Done, Work, train

from sweep.compose import compose
from sweep.config import read_config
from sweep.grid import expand
from sweep.launch.freeze import on_text
from sweep.plan import plan_sweep
from sweep.spec import PlannedRun

SMALL = 16  # sequences
LEAST_AFTER_WARM_UP = 10  # steps of a shortened run
AGREE = 0.05  # nats per token between the last test losses of one run, stacked and single; a wrong batch gives more
FIXED = ["tracking=none", "launcher=local", "launcher.threads=1", "launcher.device=cpu"]
QUANTITIES = ("wall_s", "startup_s", "compute_s", "idle_s", "cpu_s", "peak_gib")


def main() -> None:
    """Measure in rounds while the time lasts, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=["experiment=quick"], help="(default experiment=quick)")
    parser.add_argument("--where", metavar="EXPR", help="the runs to keep, as a grid's where says it")
    parser.add_argument("--share", type=float, default=1 / 8, help="of every horizon (default 1/8)")
    parser.add_argument("--rounds", type=int, default=3, help="at most (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins that would end later (default 10)")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="isoloss-bench-") as folder:
        result = measure(Path(folder), arguments)
    report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms on both lists, round by round, and what they come to."""
    began = time.perf_counter()
    work = plan_work(folder, arguments)
    rounds: list[dict[str, dict[str, Done]]] = []
    loads, longest = [], 0.0
    for number in range(arguments.rounds):
        round_began = time.perf_counter()
        if number and round_began - began + longest > 60 * arguments.minutes:
            break
        found: dict[str, dict[str, Done]] = {each.name: {} for each in work}
        for each in work:
            for arm in (*ARMS[number % len(ARMS) :], *ARMS[: number % len(ARMS)]):
                loads.append(os.getloadavg()[0])
                found[each.name][arm] = done = train(arm, each, folder / f"{number}-{each.name}-{arm}")
                print(line(number, each, arm, done), flush=True)
        rounds.append(found)
        longest = max(longest, time.perf_counter() - round_began)
    result: dict[str, Any] = {
        "overrides": arguments.overrides,
        "share": arguments.share,
        "rounds": len(rounds),
        "workers": arguments.workers,
        "cores": os.cpu_count(),
        "load_before_each": loads,
    }
    lists = {each.name: summarize(each, [found[each.name] for found in rounds]) for each in work}
    for each in work:
        ratios = lists[each.name]["ratios"]
        for suffix in each.suffixes:
            result[f"ratio{suffix}"] = ratios["plain"]["wall"]["median"]
            result[f"ratio_single{suffix}"] = ratios["single"]["wall"]["median"]
    return {**result, "lists": lists}


def plan_work(folder: Path, arguments: argparse.Namespace) -> list[Work]:
    """All runs, and those of small batches that have company, at a share of their horizons."""
    config = compose("sweep", [*arguments.overrides, *FIXED, "launcher.stack=off"])

    def plan(cells: list[dict[str, Any]], where: str | None = None) -> list[PlannedRun]:
        return plan_sweep({**config, "grid": {**config["grid"], "blocks": {"all": {"cells": cells, "where": where}}}})

    cells = [cell for name, block in read_config(config).blocks.items() for cell in expand(name, block)]
    asked = {run.run_id for run in plan_sweep(config)}
    whole = {run.run_id: run for run in plan(cells, arguments.where) if run.run_id in asked}
    shortened: dict[str, dict[str, Any]] = {}
    for cell in cells:
        [run] = plan([cell])
        least = run.spec.schedule.warmup_steps + LEAST_AFTER_WARM_UP
        steps = min(run.spec.steps, max(round(arguments.share * run.spec.steps), least))
        rest = {key: value for key, value in cell.items() if not key.startswith("horizon.") and value is not None}
        shortened[run.run_id] = {**rest, "horizon.steps": steps}
    small = [run for run in whole.values() if run.spec.batch_sequences <= SMALL]
    company = Counter(run.spec.model for run in small)
    small = [run for run in small if company[run.spec.model] > 1]
    lists: dict[str, tuple[list[PlannedRun], tuple[str, ...]]]
    lists = {"all": (list(whole.values()), ("",)), "small_batch": (small, ("_small_batch",))}
    if len(small) == len(whole):
        lists = {"all": (small, ("", "_small_batch"))}
    work = []
    for name, (chosen, suffixes) in lists.items():
        cells = [shortened[run.run_id] for run in chosen]
        if not cells:
            continue
        grid = folder / "configs" / "grid" / f"{name}.yaml"
        grid.parent.mkdir(parents=True, exist_ok=True)
        grid.write_text(json.dumps({"blocks": {name: {"cells": cells}}}), encoding="utf-8")
        command = ["--config-dir", str(folder / "configs"), *arguments.overrides, *FIXED, f"grid={name}"]
        command += ["launcher.stack=on", f"launcher.workers={arguments.workers}"]
        runs, corpora = on_text(folder, plan(cells), progress=False)
        [corpus] = corpora.values()
        factor = sum(run.spec.tokens for run in chosen) / sum(run.spec.tokens for run in runs)
        work.append(Work(name, suffixes, command, runs, corpus, factor, arguments.workers))
    return work


def summarize(work: Work, rounds: list[dict[str, Done]]) -> dict[str, Any]:
    """One list's medians and spreads, and the ratios of the other arms to the stacked one, taken round by round."""
    ratios, apart = {}, {}
    for arm in ARMS[1:]:
        pairs = [(found[arm], found["stacked"]) for found in rounds]
        ratios[arm] = {
            name: spread([getattr(other, f"{name}_s") / getattr(ours, f"{name}_s") for other, ours in pairs])
            for name in ("wall", "startup", "compute", "cpu")
        }
        whole = [projected(other, work.whole) / projected(ours, work.whole) for other, ours in pairs]
        ratios[arm]["wall_at_whole_horizons_computed"] = spread(whole)
        apart[arm] = max(abs(other.losses[r] - loss) for other, ours in pairs for r, loss in ours.losses.items())
    if apart["single"] > AGREE:
        sys.exit(f"a run's last test loss differs by {apart['single']:.3f} nats, stacked and single")
    return {
        "runs": len(work.runs),
        "shapes": Counter(f"{run.spec.model.n_layer}x{run.spec.model.d_model}" for run in work.runs),
        "tokens": sum(run.spec.tokens for run in work.runs),
        "whole_horizons": work.whole,
        "arms": {arm: {q: spread([getattr(found[arm], q) for found in rounds]) for q in QUANTITIES} for arm in ARMS},
        "ratios": ratios,
        "largest_loss_difference": apart,
    }


def projected(done: Done, factor: float) -> float:
    """Process-seconds at `factor` times the tokens: all that is not start-up grows with them."""
    return done.startup_s + factor * (done.compute_s + done.idle_s)


def spread(values: list[Any]) -> dict[str, Any]:
    """Median, lowest and highest; None each where something was not measured."""
    if None in values:
        return dict.fromkeys(("median", "low", "high"))
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def line(number: int, work: Work, arm: str, done: Done) -> str:
    """One pass, for people."""
    memory = "" if done.peak_gib is None else f"  {done.peak_gib:.2f} GiB"
    return (
        f"round {number + 1}  {work.name:11} {len(work.runs):3} runs  {arm:7} {done.wall_s:7.1f} s   process-seconds: "
        f"start-up {done.startup_s:6.1f}, compute {done.compute_s:6.1f}, idle {done.idle_s:5.1f}; "
        f"CPU {done.cpu_s:6.1f}{memory}"
    )


def report(result: dict[str, Any]) -> None:
    """Print the ratios."""
    for name, found in result["lists"].items():
        for arm, ratios in found["ratios"].items():
            wall = ratios["wall"]
            print(
                f"{name:11} {arm:6} / stacked: wall {wall['median']:.2f} ({wall['low']:.2f} to {wall['high']:.2f}), "
                f"compute alone {ratios['compute']['median']:.2f}, start-up alone {ratios['startup']['median']:.1f}, "
                f"CPU time {ratios['cpu']['median']:.2f}, "
                f"whole horizons (computed) {ratios['wall_at_whole_horizons_computed']['median']:.2f}; last losses at "
                f"most {found['largest_loss_difference'][arm]:.1g} nats apart"
            )


if __name__ == "__main__":
    main()
