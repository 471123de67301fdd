#!/usr/bin/env python3
"""How often nominal 90% intervals hold the truth, over many synthetic sweeps and tables.

    scripts/bench_calibration.py --sweeps 1000                         # prints the table
    scripts/bench_calibration.py --sweeps 1000 --csv analysis/uncertainty/calibration.csv

The scenarios are those of `analysis.uncertainty.scenarios`. The table written with --csv is the one by which results
label estimates as not calibrated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker a core; threads would only wait for each other

import pandas as pd
import torch

from analysis.outcome import plain
from analysis.uncertainty.calibration import Judged, coverage
from analysis.uncertainty.scenarios import SCENARIOS, grid_bias


def one(name: str, replicates: int, seed: int) -> list[Judged]:
    """Analyse and judge one synthetic sweep."""
    torch.set_num_threads(1)
    return SCENARIOS[name](seed, replicates)


def measure(name: str, sweeps: int, replicates: int, workers: int) -> pd.DataFrame:
    """Coverage of every quantity of one scenario, with the bias that its grid of sizes has without noise."""
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(partial(one, name, replicates), range(sweeps), chunksize=4))
    frame = coverage(row for sweep in rows for row in sweep)
    frame.insert(0, "scenario", name)
    frame["grid_bias"] = frame["quantity"].map(grid_bias(name))
    return frame


def main() -> None:
    """Run the scenarios and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=100, metavar="K", help="simulated sweeps behind each interval")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="default: all")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    began = time.perf_counter()
    frames: list[pd.DataFrame] = []
    for name in arguments.scenario or list(SCENARIOS):
        frames.append(measure(name, arguments.sweeps, arguments.bootstrap, arguments.workers))
        print(frames[-1].to_string(index=False, float_format=lambda v: f"{v:.4g}"), flush=True)
        if arguments.csv:  # what is done is kept when a later scenario is cut off
            pd.concat(frames).to_csv(arguments.csv, index=False, float_format="%.6g")
    seconds = time.perf_counter() - began
    print(f"{arguments.sweeps} sweeps a scenario, {arguments.bootstrap} simulations each, {seconds:.0f} s")
    if arguments.json:
        record = {"sweeps": arguments.sweeps, "bootstrap": arguments.bootstrap, "seconds": seconds}
        rows = pd.concat(frames).to_dict("records")
        arguments.json.write_text(json.dumps(plain(record | {"quantities": rows}), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
