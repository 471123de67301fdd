#!/usr/bin/env python3
"""Training speed by model size: isoloss with several runs stacked and with one, beside transformers' loop and Trainer.

    scripts/bench_throughput.py --json bench_throughput.json        # about five minutes on two cores
    scripts/bench_throughput.py --shapes 2x16x1 4x48x3 --rounds 9
    scripts/bench_throughput.py --markdown bench_throughput.json    # the table of a result

stacked  runs of one shape with other seeds as one model, as many together as the planner takes of `--runs`
single   one run by the same code
plain    a loop over the transformers model: SDPA attention, cross-entropy, clipping, torch.optim.AdamW as it comes
trainer  transformers' Trainer with its own AdamW and data loader (left out where the package accelerate is missing)

On a CPU the last two have a process each, without the allocator's settings that isoloss makes in its own. All train on
real text, in turns, `--rounds` times after a warm-up; a ratio is the median of those of the rounds. FLOPs are 6 N plus
attention over the context and logits, for each token. The peak is the fastest square matrix product of the same
precision, measured before and after each cell. Words of the form key=value change the runs' configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from benchmarks.elsewhere import Elsewhere
from benchmarks.peak import matrix_peak
from benchmarks.speed import TEST_TOKENS, Arm, ours, plain, ready, trainer

from sweep.accounting import count_flops, count_params
from sweep.compose import compose
from sweep.corpus import Corpus, open_corpus
from sweep.device import device_name, numerics
from sweep.launch.freeze import on_text
from sweep.plan import plan_sweep
from sweep.spec import PlannedRun
from sweep.stacking import stacks

BASELINES = ("plain", "trainer")
ARMS = ("stacked", "single", *BASELINES)
PAIRS = (("stacked", "single"), ("single", "plain"), ("single", "trainer"))
SHAPES = {  # layers x width x heads
    "cpu": ("2x12x1", "2x16x1", "2x24x2", "2x32x2", "3x40x2", "4x48x3", "6x64x4", "8x96x6"),
    "cuda": ("2x8x1", "2x16x1", "2x32x2", "4x48x3", "4x96x3", "6x128x2", "8x256x4", "8x384x6", "12x512x8", "12x768x12",
             "16x1024x16"),
}  # fmt: skip
SMALL_UP_TO = 1e6  # parameters; larger models are measured at the larger batch only
DEFAULTS = {  # n_ctx, batches in sequences, runs, precision
    "cpu": (128, (2, 16), 8, "fp32"),
    "cuda": (512, (4, 64), 64, "bf16"),
}


def main() -> None:
    """Measure cell by cell, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the runs' configuration, e.g. data=text data.files=[...]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="(default fp32 on a CPU, else bf16)")
    parser.add_argument("--shapes", nargs="+", metavar="LxDxH", help="layers x width x heads (default a ladder)")
    parser.add_argument("--batches", nargs="+", type=int, metavar="SEQUENCES", help="(default 2 16, on a GPU 4 64)")
    parser.add_argument("--runs", type=int, help="to stack at most (default 8, on a GPU 64)")
    parser.add_argument("--n-ctx", type=int, help="(default 128, on a GPU 512)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="of an arm in a round (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the table of this result, measure nothing")
    arguments = parser.parse_intermixed_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text(encoding="utf-8"))))
        return
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in zip(("n_ctx", "batches", "runs", "precision"), DEFAULTS[arguments.device], strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    with tempfile.TemporaryDirectory(prefix="isoloss-bench-") as folder:
        result = measure(Path(folder), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(markdown(result))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All cells, and the peak."""
    device, precision = arguments.device, arguments.precision
    peaks: dict[int, float] = {}

    def look_at_peak() -> None:
        for size, flops in matrix_peak(device, precision).items():
            peaks[size] = max(peaks.get(size, 0.0), flops)

    cells = []
    with ExitStack() as opened:
        others = {}
        if device == "cpu":
            for name in BASELINES:
                others[name] = opened.enter_context(Elsewhere(name, arguments.threads, folder))
        for shape in arguments.shapes or SHAPES[device]:
            for batch in arguments.batches:
                stacked, single, corpus = plan(folder, shape, batch, arguments)
                large = count_params(single.spec.model).params > SMALL_UP_TO
                if large and batch < max(arguments.batches):
                    continue
                with numerics(precision, single.execution, device):
                    look_at_peak()
                    cells.append(cell(folder, stacked, single, corpus, arguments, others) | {"shape": shape})
                    print(line(cells[-1]), flush=True)
                    look_at_peak()
    peak = max(peaks.values())
    for each in cells:
        for found in each["arms"].values():
            found["share_of_peak"] = found["flops_per_s"]["median"] / peak
    return {
        "device": device_name(device),
        "precision": precision,
        "threads": arguments.threads if device == "cpu" else None,
        "n_ctx": arguments.n_ctx,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "cores": os.cpu_count(),
        "peak_flops": peak,
        "peak_by_size": peaks,
        "cells": cells,
    }


def plan(
    folder: Path, shape: str, batch: int, arguments: argparse.Namespace
) -> tuple[list[PlannedRun], PlannedRun, Corpus]:
    """The largest stack that the planner makes of runs that differ by their seed, one run alone, and the text."""
    layers, width, heads = shape.split("x")
    overrides = [
        f"model.shape={layers}x{width}", f"model.n_head={heads}", f"model.n_ctx={arguments.n_ctx}",
        f"batch_tokens={batch * arguments.n_ctx}", f"precision={arguments.precision}", "horizon.steps=1000000",
        "data.max_epochs=1000000", f"data.test_tokens={TEST_TOKENS}", "tracking=none", "launcher.workers=1",
        f"launcher.threads={arguments.threads}", f"launcher.device={arguments.device}", *arguments.overrides,
    ]  # fmt: skip

    def planned(stack: str, runs: int) -> list[PlannedRun]:
        config = compose("sweep", [*overrides, f"launcher.stack={stack}"])
        config["grid"]["blocks"] = {"seeds": {"product": {"seed": list(range(runs))}}}
        return max(stacks(plan_sweep(config)), key=len)

    [single], corpora = on_text(folder, planned("off", 1), progress=False)
    [corpus] = corpora.values()
    return planned("on", arguments.runs), single, open_corpus(corpus)


def cell(
    folder: Path,
    stacked: list[PlannedRun],
    single: PlannedRun,
    corpus: Corpus,
    arguments: argparse.Namespace,
    others: dict[str, Elsewhere],
) -> dict[str, Any]:
    """One shape and batch: every arm in turns; those of `others` in their processes."""
    device, spec = arguments.device, single.spec
    makers: dict[str, Callable[[], Arm]] = {
        "stacked": lambda: ours(stacked, corpus, device),
        "single": lambda: ours([single], corpus, device),
        "plain": lambda: plain(single, corpus, device),
        "trainer": lambda: trainer(single, corpus, device, folder),
    }
    makers |= {name: partial(other.arm, single, corpus.path) for name, other in others.items()}
    if not find_spec("accelerate"):  # which the Trainer wants
        del makers["trainer"]
    arms = {name: arm for name, make in makers.items() if (arm := ready(make, device, arguments.seconds))}
    names = list(arms)
    for number in range(arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            arms[name].measure()
    flops = count_flops(spec.model).total
    found = {
        name: {
            "tokens_per_s": spread(arm.speeds),
            "flops_per_s": spread([flops * speed for speed in arm.speeds]),
            "steps_a_round": arm.steps,
            "loss": {"first": arm.first_loss, "last": arm.loss()},
            "peak_memory_bytes": arm.memory,
        }
        for name, arm in arms.items()
    }
    ratios = {
        f"{a} / {b}": spread([x / y for x, y in zip(arms[a].speeds, arms[b].speeds, strict=True)])
        for a, b in PAIRS
        if a in arms and b in arms
    }
    return {
        "params": count_params(spec.model).params,
        "params_total": count_params(spec.model).total,
        "flops_per_token": flops,
        "batch_sequences": spec.batch_sequences,
        "runs_stacked": len(stacked),
        "micro_batch": {"stacked": stacked[0].execution.micro_batch, "single": single.execution.micro_batch},
        "load": os.getloadavg()[0],
        "arms": found,
        "out_of_memory": [name for name in makers if name not in arms],
        "ratios": ratios,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def line(found: dict[str, Any]) -> str:
    """One cell, for people."""
    speeds = "  ".join(
        f"{name} {arm['tokens_per_s']['median'] / 1e3:8.1f}k ({arm['tokens_per_s']['low'] / 1e3:.1f} to "
        f"{arm['tokens_per_s']['high'] / 1e3:.1f})"
        for name, arm in found["arms"].items()
    )
    left_out = "".join(f"  {name} out of memory" for name in found["out_of_memory"])
    return f"{found['shape']:10} batch {found['batch_sequences']:3}  R {found['runs_stacked']:2}  {speeds}{left_out}"


def speed(arm: dict[str, Any]) -> str:
    """Thousands of tokens per second and the share of the matrix peak."""
    return f"{arm['tokens_per_s']['median'] / 1e3:,.1f} ({arm['share_of_peak']:.1%})"


def markdown(result: dict[str, Any]) -> str:
    """A result as a table."""
    where = f"{result['device']}, {result['precision']}, context {result['n_ctx']}"
    where += f", {result['threads']} thread{'s' * (result['threads'] > 1)}" if result["threads"] else ""
    titles = ["shape", "N", "batch", "R", *ARMS, *(f"{a} / {b}" for a, b in PAIRS)]
    rows = []
    for each in result["cells"]:
        arms = [each["arms"].get(name) for name in ARMS]
        ratios = [each["ratios"].get(f"{a} / {b}") for a, b in PAIRS]
        rows.append(
            ["x".join(each["shape"].split("x")[:2]), f"{each['params']:,}", str(each["batch_sequences"])]
            + [str(each["runs_stacked"])]
            + ["" if arm is None else speed(arm) for arm in arms]
            + ["" if ratio is None else f"{ratio['median']:.2f}" for ratio in ratios]
        )
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{where}; matrix peak {result['peak_flops'] / 1e9:,.0f} GFLOP/s\n\n{table}"


if __name__ == "__main__":
    main()
