#!/usr/bin/env python3
"""What `isoloss analyze` costs on large tables: wall time, CPU time and peak memory at three sizes, and how they grow.

    scripts/bench_analyze.py                          # up to 10,000 runs of 1,000 evaluations, 1e7 rows
    scripts/bench_analyze.py --runs 1000 --json bench_analyze.json

Each table is a sweep of model sizes x batch sizes x learning rates x seeds drawn from Kaplan's laws, written to a
temporary folder as `isoloss collect` would write it. The command runs in a process of its own, as a user runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S, LIMIT_GIB = 90.0, 4.0  # at 1e7 rows, on two cores
STEP = math.sqrt(10)  # between a table and the next; the last is ten times the one before
COMMAND = "import sys; from sweep.cli import main; sys.exit(main())"

AXES = {"sizes": 20, "batches": 10, "rates": 10, "seeds": 5}  # of 10,000 runs
N_CTX, TOKENS = 128, 4e7
SIGMA, TUNING, RATE_PENALTY = 0.004, 0.03, 0.1


def main() -> None:
    """Write, analyse and time three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="of the largest table (default %(default)s)")
    parser.add_argument("--evaluations", type=int, default=1000, help="of every run (default %(default)s)")
    parser.add_argument("--bootstrap", type=int, help="passed on (default: the command's own)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="DIR", help="only write a table of --runs runs into DIR")
    arguments = parser.parse_args()
    if arguments.write:
        write_sweep(arguments.write, arguments.runs, arguments.evaluations)
        return
    results = []
    for runs in (round(arguments.runs / 10 / STEP), round(arguments.runs / 10), arguments.runs):
        with tempfile.TemporaryDirectory(prefix="isoloss-bench-") as folder:
            results.append(measure(Path(folder), runs, arguments.evaluations, arguments.bootstrap))
        r = results[-1]
        print(
            f"{r['rows']:>10,} rows {r['runs']:>6,} runs  {r['wall_s']:6.1f} s wall {r['cpu_s']:6.1f} s CPU  "
            f"{r['peak_gib']:.2f} GiB peak",
            flush=True,
        )
    exponents = {name: growth(results, name) for name in ("wall_s", "cpu_s")}
    for name, (whole, last) in exponents.items():
        print(f"{name} grows as rows^{whole:.2f}; from the second to the last table as rows^{last:.2f}")
    result = {
        "tables": results,
        "growth": {name: {"fit": whole, "last": last} for name, (whole, last) in exponents.items()},
        "bootstrap": arguments.bootstrap,
        "cores": os.cpu_count(),
        "limits": {"wall_s": LIMIT_S, "peak_gib": LIMIT_GIB},
        "within_limits": results[-1]["wall_s"] <= LIMIT_S and results[-1]["peak_gib"] <= LIMIT_GIB,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, runs: int, evaluations: int, bootstrap: int | None) -> dict[str, float]:
    """Cost of the command on one table. This process stays small and the table is made by another: a child's peak
    memory is never counted below that of the process it was forked from."""
    size = ["--runs", str(runs), "--evaluations", str(evaluations)]
    subprocess.run([sys.executable, __file__, "--write", str(folder), *size], check=True)
    argv = [sys.executable, "-c", COMMAND, "analyze", str(folder)]
    argv += [] if bootstrap is None else ["--bootstrap", str(bootstrap)]
    log = folder / "analyze.log"
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        sys.exit(f"isoloss analyze failed:\n{log.read_text(errors='replace')[-4000:]}")
    return {
        "runs": runs,
        "rows": runs * evaluations,
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss * 1024 / 2**30,
        "table_bytes": sum(file.stat().st_size for file in folder.glob("*.parquet")),
    }


def growth(results: list[dict[str, float]], name: str) -> tuple[float, float]:
    """Exponents of `name` against rows: of all tables by least squares, and between the last two."""
    x = [math.log(r["rows"]) for r in results]
    y = [math.log(r[name]) for r in results]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x), (y[-1] - y[-2]) / (x[-1] - x[-2])


def axes_of(runs: int) -> dict[str, int]:
    """Lengths of the four axes whose product is at least `runs`: smaller sweeps have less of everything."""
    share = (runs / math.prod(AXES.values())) ** 0.25
    return {name: max(1, math.ceil(round(length * share, 6))) for name, length in AXES.items()}


def write_sweep(folder: Path, runs: int, evaluations: int, seed: int = 0) -> None:
    """`runs` runs as runs.parquet and curves.parquet in `folder`, cell by cell, so that memory stays small."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from analysis.uncertainty.bootstrap import correlated_noise
    from analysis.uncertainty.simulate import Truth, curve_rows, run_row
    from sweep.schema import CURVES_TABLE, RUNS_TABLE

    truth, rng, axes = Truth(), np.random.default_rng(seed), axes_of(runs)
    widths = np.unique(np.round(np.geomspace(8, 160, axes["sizes"]))).astype(int)
    batches = 2 ** np.unique(np.round(np.linspace(1, AXES["batches"], axes["batches"]))).astype(int)
    factors = 2.0 ** (np.arange(axes["rates"]) - (axes["rates"] - 1) // 2)
    # Seeds last, so that every cell has its first one where the axes hold more than is asked for.
    settings = [(factor, number) for number in range(axes["seeds"]) for factor in factors.tolist()]
    settings = settings[: -(-runs // (len(widths) * len(batches)))]
    rows: list[dict[str, object]] = []
    writer = None
    for width in widths.tolist():
        params = 24 * width**2
        horizon = TOKENS * (24576 / params) ** 0.5
        reached = truth.loss(params, N_CTX, np.array([horizon / N_CTX]))
        for sequences in batches.tolist():
            batch = sequences * N_CTX
            steps = max(evaluations, math.ceil(horizon * (1 + batch / float(truth.B_crit(reached)[0])) / batch))
            at = np.ceil(np.linspace(steps / evaluations, steps, evaluations))
            grid = np.geomspace(at[0] / 10, at[-1] * 2, 200)
            known = np.log(truth.loss(params, batch, grid))
            mistuned = TUNING * rng.standard_normal()
            own = settings[: runs - len(rows)]
            noise = SIGMA * correlated_noise(np.log(at * batch), 1.0, rng, len(own))
            tables = []
            for (factor, number), shocks in zip(own, noise, strict=True):
                slowed = np.log(at) - RATE_PENALTY * math.log(factor) ** 2 + mistuned
                loss = np.exp(np.interp(slowed, np.log(grid), known) + shocks)
                name = f"2x{width}-{sequences}-{factor:g}-{number}"
                lr = factor * 3e-3 * math.sqrt(sequences)
                rows.append(run_row(name, 2, width, N_CTX, batch, steps, lr, number, float(loss[-1])))
                tables.append(curve_rows(rows[-1], at, loss))
            if tables:
                table = pa.Table.from_pandas(pd.concat(tables), preserve_index=False)
                writer = writer or pq.ParquetWriter(folder / CURVES_TABLE, table.schema)
                writer.write_table(table)
    if writer is not None:
        writer.close()
    pd.DataFrame(rows).to_parquet(folder / RUNS_TABLE, index=False)


if __name__ == "__main__":
    main()
