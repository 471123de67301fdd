#!/usr/bin/env python3
"""What very large sweeps cost: planning, freezing, status and collecting, and what one run leaves on the disk.

    scripts/bench_scale.py                                   # 100,000 runs planned, 10,000 recorded; a few minutes
    scripts/bench_scale.py --planned 1000 --recorded 200 --repeats 1 --json bench_scale.json

Every command runs in a process of its own, as a user runs it. One run is really trained; the records of the others are
its files, with the specification of their own and as many evaluations as asked for. All is in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WHAT = {
    "plan": "isoloss plan",
    "write": "plan.jsonl written",
    "read": "plan.jsonl read back",
    "offsets": "plan.jsonl indexed",
    "status": "isoloss status",
    "collect": "isoloss collect",
}
BOUNDS = {"plan": {"wall_s": 60.0, "peak_gib": 2.0}, "status": {"wall_s": 10.0}, "collect": {"wall_s": 60.0}}
MAX_FILES = 12  # of a run, beside the shards of its checkpoint
COMMAND = "import sys; from sweep.cli import main; sys.exit(main())"

TEXT = [f"'{Path(json.__file__).parent.parent / package}/*.py'" for package in ("json", "email")]
RUN = ["batch_tokens=512", "horizon.steps=400", "launcher.device=cpu", "tracking=none", "data=text", "data.name=parts",
       f"data.files=[{','.join(TEXT)}]", "data.max_epochs=20", "data.test_tokens=4096"]  # fmt: skip
AXES: dict[str, list[Any]] = {  # 100 runs, times the seeds
    "model.shape": [f"{layers}x{width}" for layers in (2, 4, 6, 8) for width in (16, 32, 64, 96, 128)],
    "optimizer.lr_factor": [0.25, 0.5, 1.0, 2.0, 4.0],
}
CELLS = math.prod(map(len, AXES.values()))


def main() -> None:
    """Measure, print beside the bounds, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planned", type=int, default=100_000, help="runs to plan, in hundreds (default %(default)s)")
    parser.add_argument("--recorded", type=int, default=10_000, help="runs with a record (default %(default)s)")
    parser.add_argument("--evaluations", type=int, default=200, help="of each record (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--part", nargs=4, metavar=("NAME", "DIR", "RUNS", "EVALUATIONS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, folder, *sizes = arguments.part
        print(json.dumps({"freeze": freeze, "records": write_records}[name](Path(folder), *map(int, sizes))))
        return
    with tempfile.TemporaryDirectory(prefix="isoloss-bench-") as folder:
        os.environ["ISOLOSS_CACHE"] = str(Path(folder) / "cache")  # no measurements of the user's
        result = measure(Path(folder), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, printed as they come. This process stays small and leaves the data to others: a child's peak
    memory is never counted below that of the process it was forked from."""
    planned, recorded, evaluations = (getattr(arguments, name) for name in ("planned", "recorded", "evaluations"))
    result: dict[str, Any] = {"planned": planned, "recorded": recorded, "evaluations": evaluations}
    result |= {"cores": os.cpu_count(), "bounds": BOUNDS | {"files": MAX_FILES}, "costs": {}}

    def cost(name: str, size: str, once: Callable[[], dict[str, float]]) -> None:
        found = spread([once() for _ in range(arguments.repeats)]) | {"load": os.getloadavg()[0]}
        result["costs"][name] = found
        print(line(name, size, found), flush=True)

    runs = f"{planned:,} runs"
    cost("plan", runs, lambda: isoloss("plan", *grid(folder, planned)))
    frozen = [part("freeze", folder, planned, 0) for _ in range(arguments.repeats)]
    for name in ("write", "read", "offsets"):
        cost(name, runs, iter([each[name] for each in frozen]).__next__)
    result["plan_bytes_a_run"] = frozen[0]["bytes"] / planned
    print(f"plan.jsonl has {result['plan_bytes_a_run']:,.0f} bytes a run")
    result["run_directory"] = run_directory(folder)
    part("records", folder, recorded, evaluations)
    cost("status", f"{recorded:,} runs", lambda: isoloss("status", str(folder / "sweep")))
    cost("collect", f"{recorded:,} x {evaluations}", lambda: isoloss("collect", str(folder / "sweep")))
    return result


def isoloss(*argv: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of a command."""
    return child([sys.executable, "-c", COMMAND, *argv])[0]


def part(name: str, folder: Path, runs: int, evaluations: int) -> Any:
    """What the part of this script called `name` prints, run in a process of its own."""
    return json.loads(child([sys.executable, __file__, "--part", name, str(folder), str(runs), str(evaluations)])[1])


def child(argv: list[str]) -> tuple[dict[str, float], str]:
    """The cost of a process, and what it prints. Ends the benchmark where it fails."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        out.seek(0)
        said = out.read()
    if status:
        sys.exit(f"{' '.join(argv[2:])} failed:\n{said[-4000:]}")
    return costs(wall, usage), said


def costs(wall: float, usage: resource.struct_rusage) -> dict[str, float]:
    """Of a process of which the system says `usage`."""
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss * 1024 / 2**30}


def spread(found: list[dict[str, float]]) -> dict[str, Any]:
    """Median, lowest and highest of each quantity of repeated measurements."""
    columns = {key: [each[key] for each in found] for key in found[0]}
    return {
        key: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for key, values in columns.items()
    }


def line(name: str, size: str, found: dict[str, Any]) -> str:
    """One measurement, beside its bounds."""
    wall = found["wall_s"]
    bounds = [f"{bound:g} {'s' if key == 'wall_s' else 'GiB'}" for key, bound in BOUNDS.get(name, {}).items()]
    return (
        f"{WHAT[name]:20} {size:>13} {wall['median']:7.2f} s ({wall['low']:.2f} to {wall['high']:.2f}) "
        f"{found['cpu_s']['median']:7.2f} s CPU  {found['peak_gib']['median']:.2f} GiB"
        + (f"   bound: {', '.join(bounds)}" if bounds else "")
    )


def run_directory(folder: Path) -> dict[str, Any]:
    """Files and bytes of a run that is really trained, checkpointed at every chance: at most while it trains, and when
    it is done."""
    sweep_dir = folder / "one"
    argv = [sys.executable, "-c", COMMAND, "train", *RUN, "model.shape=2x16", f"sweep_dir={sweep_dir}"]
    with (folder / "train.log").open("w+") as log:
        process = subprocess.Popen([*argv, "execution.checkpoint_seconds=0"], stdout=log, stderr=subprocess.STDOUT)
        most: dict[str, int] = {}
        while process.poll() is None:
            most = max(most, files_of(sweep_dir / "runs"), key=len)
            time.sleep(0.002)
        log.seek(0)
        if process.returncode:
            sys.exit(f"isoloss train failed:\n{log.read()[-4000:]}")
    result = {}
    for when, files in (("training", most), ("done", files_of(sweep_dir / "runs"))):
        others = [name for name in files if not name.endswith(".safetensors")]
        result[when] = {"files": files, "beside_shards": len(others), "bytes": sum(files.values())}
        print(
            f"run directory, {when:10} {len(files)} files, {len(others)} beside checkpoint shards, "
            f"{sum(files.values()):,} bytes   bound: {MAX_FILES} files beside shards"
        )
    print("  " + ", ".join(f"{name} {size:,}" for name, size in sorted(result["done"]["files"].items())), flush=True)
    return result


def files_of(runs: Path) -> dict[str, int]:
    """Bytes of each file of the one run in `runs`, by its path within the run's directory."""
    found = {}
    for path in runs.glob("*/**/*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            if path.is_file():
                found["/".join(path.relative_to(runs).parts[1:])] = path.stat().st_size
    return found


def grid(folder: Path, runs: int) -> list[str]:
    """Arguments that plan at least `runs` runs, by a configuration that this writes."""
    block = {"product": {**AXES, "seed": list(range(math.ceil(runs / CELLS)))}}
    path = folder / "configs" / "experiment" / "large.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + json.dumps({"grid": {"blocks": {"all": block}}}), encoding="utf-8")
    return ["--config-dir", str(folder / "configs"), "experiment=large", *RUN]


def plan(folder: Path, runs: int) -> list[Any]:
    """The first `runs` runs of the grid."""
    from sweep.compose import compose
    from sweep.plan import plan_sweep

    config_dir, *overrides = grid(folder, runs)[1:]
    return plan_sweep(compose("sweep", overrides, Path(config_dir)))[:runs]


def freeze(folder: Path, runs: int, _: int) -> dict[str, Any]:
    """Costs of writing and reading plan.jsonl and of finding its lines, and its bytes. The memory is that of the
    process, which holds the plan."""
    from sweep.plan import plan_offsets, read_plan, write_plan

    planned, path, result = plan(folder, runs), folder / "plan.jsonl", {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        found = action()
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        earlier = before.ru_utime + before.ru_stime
        result[name] = {**costs(wall, after), "cpu_s": after.ru_utime + after.ru_stime - earlier}
        return found

    timed("write", lambda: write_plan(path, planned))
    assert len(timed("offsets", lambda: plan_offsets(path))) == runs
    assert timed("read", lambda: read_plan(path)) == planned
    return {**result, "bytes": path.stat().st_size}


def write_records(folder: Path, runs: int, evaluations: int) -> None:
    """A sweep of `runs` runs that are all done, in `folder`/sweep, from the record of the one in `folder`/one. The
    files that would hold the same are links to one file."""
    from sweep.plan import write_plan
    from sweep.schema import METRICS_FILE, PLAN_FILE, RUNS_DIR, SPEC_FILE

    (template,) = (folder / "one" / RUNS_DIR).iterdir()
    row = json.loads((template / METRICS_FILE).read_text().splitlines()[-1])
    planned = plan(folder, runs)
    write_plan(folder / "sweep" / PLAN_FILE, planned)
    for run in planned:
        run_dir = folder / "sweep" / RUNS_DIR / run.run_id
        own = shutil.ignore_patterns(METRICS_FILE, SPEC_FILE)
        shutil.copytree(template, run_dir, ignore=own, copy_function=os.link)
        spec = {"run_id": run.run_id, **run.to_dict()["spec"]}
        (run_dir / SPEC_FILE).write_text(json.dumps(spec, indent=1) + "\n")
        shares = [(k + 1) / evaluations for k in range(evaluations)]
        rows = [
            row | {"step": round(run.spec.steps * share), "test_loss": 2 + share**-0.3}
            | {name: run.costs[name] * share for name in ("tokens", "flops")}
            for share in shares
        ]  # fmt: skip
        (run_dir / METRICS_FILE).write_text("".join(json.dumps(each) + "\n" for each in rows))


if __name__ == "__main__":
    main()
