#!/usr/bin/env python3
"""How often nominal 90% intervals hold the truth, over many synthetic sweeps.

    scripts/bench_calibration.py --sweeps 1000                         # prints the table
    scripts/bench_calibration.py --sweeps 1000 --csv analysis/uncertainty/calibration.csv

Two kinds of sweep go through the whole chain: `kaplan`, undecayed curves of six sizes, two of them at seven batches,
with warm-up transients, seed noise and uneven tuning; `hoffmann`, decayed runs of eight sizes at seven budgets. The
table written with --csv is the one that labels estimates as not calibrated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker a core; threads would only wait for each other

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import RectBivariateSpline

from analysis import parametric
from analysis.chain.derive import derive
from analysis.tables.table import Table
from analysis.uncertainty.calibration import Judged, World, coverage, judge, named_estimates, optimal
from analysis.uncertainty.simulate import Truth, decayed_sweep, synthetic_sweep

TUNING, SIGMA, WARMUP = 0.04, 0.004, 1e5
BATCH = 2048.0  # tokens, what the sizes of `kaplan` share
SHAPES = ((2, 8), (2, 12), (2, 16), (2, 24), (2, 32), (2, 48), (3, 56), (4, 64))
BUDGETS = tuple(1e10 * 2.5**i for i in range(7))
HOFFMANN = {"A": 20.0, "B": 400.0, "E": 1.2, "alpha": 0.35, "beta": 0.4}
THETA = np.array([math.log(20.0), 0.35, math.log(400.0), 0.4, math.log(1.2)])


@dataclass(frozen=True)
class Scenario:
    """draw: a noisy sweep by its seed. clean: the same sizes without noise. world: what they are drawn from."""

    draw: Callable[[int], Table]
    clean: Callable[[], Table]
    world: World


def scenarios() -> dict[str, Scenario]:
    """The sweeps that intervals are judged on."""
    truth, law = Truth(), HOFFMANN
    constants = {
        "critical-batch.B_star": truth.B_star,
        "critical-batch.alpha_B": truth.alpha_B,
        "critical-batch.slope": -1 / truth.alpha_B,
        "kaplan-ns.N_c": truth.N_c,
        "kaplan-ns.alpha_N": truth.alpha_N,
        "kaplan-ns.S_c": truth.S_c,
        "kaplan-ns.alpha_S": truth.alpha_S,
        "kaplan-ns.alpha_C_min": truth.alpha_C_min,
    }
    hoffmann = {f"parametric.{name}": float(value[0]) for name, value in parametric.constants(THETA[None]).items()}
    return {
        "kaplan": Scenario(
            lambda seed: synthetic_sweep(truth, tuning=TUNING, sigma=SIGMA, warmup=WARMUP, seed=seed),
            lambda: synthetic_sweep(truth, sigma=1e-9, seeds={}, warmup=WARMUP),
            World(constants, _kaplan, truth),
        ),
        "hoffmann": Scenario(
            lambda seed: decayed_sweep(BUDGETS, shapes=SHAPES, sigma=SIGMA, seeds=3, seed=seed, **law),
            lambda: decayed_sweep(BUDGETS, shapes=SHAPES, **law),
            World(hoffmann, _hoffmann),
        ),
    }


@cache
def _surface() -> RectBivariateSpline:
    """ln L of `kaplan` at the common batch against (ln N, ln D): the law is implicit, and read millions of times."""
    ln_n, ln_tokens = np.linspace(5, 14, 100), np.linspace(7, 22, 300)
    loss = [Truth().loss(math.exp(n), BATCH, np.exp(ln_tokens) / BATCH) for n in ln_n]
    return RectBivariateSpline(ln_n, ln_tokens, np.log(loss))


def _kaplan(ln_n: float, ln_tokens: np.ndarray) -> np.ndarray:
    return np.asarray(_surface()(ln_n, ln_tokens)[0])


def _hoffmann(ln_n: float, ln_tokens: np.ndarray) -> np.ndarray:
    return np.log(parametric.predict(THETA, np.exp(ln_n), np.exp(ln_tokens)))


def one(name: str, replicates: int, seed: int) -> list[Judged]:
    """Analyse one noisy sweep."""
    torch.set_num_threads(1)
    scenario = scenarios()[name]
    return judge(derive(scenario.draw(seed), replicates=replicates, seed=seed, extras=False), scenario.world)


def measure(name: str, sweeps: int, replicates: int, workers: int) -> pd.DataFrame:
    """Coverage of every quantity of one scenario, with the bias that its grid of sizes has without noise."""
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(partial(one, name, replicates), range(sweeps), chunksize=4))
    frame = coverage(row for sweep in rows for row in sweep)
    scenario = scenarios()[name]
    clean = derive(scenario.clean(), replicates=0)
    found, truth = named_estimates(clean), optimal(clean, scenario.world)
    frame.insert(0, "scenario", name)
    frame["grid_bias"] = [
        found[q].value - truth[q] if q in truth and q in found else math.nan for q in frame["quantity"]
    ]
    return frame


def main() -> None:
    """Run the scenarios and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=100, metavar="K", help="simulated sweeps behind each interval")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--scenario", choices=sorted(scenarios()), action="append", help="default: all")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    began = time.perf_counter()
    names = arguments.scenario or list(scenarios())
    frame = pd.concat([measure(n, arguments.sweeps, arguments.bootstrap, arguments.workers) for n in names])
    print(frame.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    seconds = time.perf_counter() - began
    print(f"{arguments.sweeps} sweeps a scenario, {arguments.bootstrap} simulations each, {seconds:.0f} s")
    if arguments.csv:
        frame.to_csv(arguments.csv, index=False, float_format="%.6g")
    if arguments.json:
        record = {"sweeps": arguments.sweeps, "bootstrap": arguments.bootstrap, "seconds": seconds}
        arguments.json.write_text(json.dumps(record | {"quantities": frame.to_dict("records")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
