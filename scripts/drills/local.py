"""Drills without a scheduler: killed processes, damaged files, rivals, clocks, locks, memory, errors."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from drills.cluster import wait_until
from drills.lab import LOCAL, STACK, Lab, Result, Sweep, process_status
from sweep.schema import CHECKPOINT_DIR

INJECT = str(Path(__file__).with_name("inject"))
ATTEMPT = Path(__file__).with_name("attempt.py")


def cut(sweep: Sweep, process: subprocess.Popen[bytes]) -> None:
    """Kill a sweep and its training processes, all at once, as a power cut does."""
    for pid in (process.pid, *sweep.workers(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def under_way(sweep: Sweep, process: subprocess.Popen[bytes], runs: int = 2) -> list[Path]:
    """Waits until `runs` runs have checkpoints and evaluations, and returns their directories."""

    def far() -> list[Path]:
        if process.poll() is not None:
            raise RuntimeError(f"the sweep ended before the fault: {sweep.log.read_text()[-500:]}")
        found = [run for run in sweep.runs() if len(list(run.glob(f"{CHECKPOINT_DIR}/step-*.json"))) > 1]
        return found if len(found) >= runs else []

    return wait_until(far, "checkpoints")


def finish(sweep: Sweep, result: Result, *overrides: str) -> None:
    """Run the same command again, which has to end well, and compare."""
    code, output = sweep.run(*LOCAL, *overrides)
    result.expect(code == 0, f"the command after the fault ended with {code}: {output[-300:]}")
    sweep.compare(result)


def kills(lab: Lab, times: int = 50, seed: int = 0) -> Result:
    """kill -9 of the training process, or of everything, at random moments: mostly of its training, else of its
    start."""
    result, moments = Result("kill -9 of a training process"), random.Random(seed)
    sweeps = 0
    while result.injected < times:
        sweep = Sweep(lab, f"kills-{sweeps}", how=("launcher.retries=1000",))
        sweeps += 1
        while result.injected < times and sweep.statuses().count("done") < 2:
            process = sweep.start(*LOCAL)
            while result.injected < times and (worker := _next_worker(sweep, process, moments)):
                if moments.random() < 0.2:
                    cut(sweep, process)
                else:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                        os.kill(worker, signal.SIGKILL)
                    wait_until(lambda worker=worker: not process_status(worker), "death of a process")  # type: ignore[misc]
                result.injected += 1
            process.wait()
        finish(sweep, result)
    return result


def _next_worker(sweep: Sweep, process: subprocess.Popen[bytes], moments: random.Random) -> int | None:
    """The training process, at a random moment; None where the sweep has ended before."""
    before, in_training = sweep.attempts(), moments.random() < 0.8
    wait_until(lambda: sweep.workers(process) or process.poll() is not None, "a training process")
    if in_training:
        wait_until(lambda: sweep.attempts() > before or process.poll() is not None, "training")
    time.sleep(moments.uniform(0, 2))
    return next(iter(sweep.workers(process)), None)


def stack_cuts(lab: Lab, times: int = 8, seed: int = 0) -> Result:
    """kill -9 of everything, again and again, while four runs are trained as one stack."""
    result, moments = Result("kill -9 in the middle of a stack"), random.Random(seed)
    lab.reference(STACK)
    sweep = Sweep(lab, "stack-cuts", STACK)
    while result.injected < times and sweep.statuses().count("done") < 4:
        process = sweep.start("launcher=local")
        if _next_worker(sweep, process, moments):
            cut(sweep, process)
            result.injected += 1
    finish(sweep, result)
    result.expect("in 1 stack" in sweep.log.read_text(), "the runs were not trained as one stack")
    return result


def truncated_line(lab: Lab) -> Result:
    """The last line of metrics.jsonl is cut in the middle by a crash, or followed by rubbish."""
    result, sweep = Result("truncated metrics line"), Sweep(lab, "truncated")
    process = sweep.start("launcher=local", "launcher.workers=2")
    damaged = under_way(sweep, process)
    cut(sweep, process)
    for run, rubbish in zip(damaged, (b"", b"\x00\xff{"), strict=True):
        metrics = run / "metrics.jsonl"
        text = metrics.read_bytes()
        metrics.write_bytes(text + rubbish if rubbish else text[:-40])
        result.injected += 1
    finish(sweep, result)
    return result


def corrupted_checkpoint(lab: Lab) -> Result:
    """The newest checkpoint has flipped bits in its tensors, or is half an index."""
    result, sweep = Result("corrupted newest checkpoint"), Sweep(lab, "corrupted")
    process = sweep.start("launcher=local", "launcher.workers=2")
    damaged = under_way(sweep, process)
    cut(sweep, process)
    for run, suffix in zip(damaged, ("safetensors", "json"), strict=True):
        index = max(run.glob(f"{CHECKPOINT_DIR}/step-*.json"), key=lambda path: int(path.name.split("-")[1]))
        path = index.with_suffix(f".{suffix}")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if suffix == "safetensors" else content[: len(content) // 2])
        result.injected += 1
    finish(sweep, result)
    for run in damaged:
        result.expect(list(run.glob(f"{CHECKPOINT_DIR}/*.corrupt")), f"{run}: the damaged checkpoint was not set aside")
        notes = " ".join(sweep.status(run).get("notes", []))
        result.expect("damaged" in notes, f"{run}: its status does not say that a checkpoint was damaged")
    return result


def two_sweeps(lab: Lab, times: int = 5) -> Result:
    """Two `isoloss sweep` start at once on one directory: one trains, the other says that it is in use."""
    result = Result("two sweeps at once")
    for number in range(times):
        sweep = Sweep(lab, f"two-{number}", ("horizon.steps=500",))
        both = [sweep.start(*LOCAL), sweep.start(*LOCAL)]
        codes = sorted(process.wait() for process in both)
        result.injected += 1
        result.expect(codes == [0, 2], f"exit codes {codes} instead of 0 and 2")
        result.expect("in use" in sweep.log.read_text(), "the second did not say that the directory is in use")
        sweep.compare(result)
        attempts = [sweep.status(run).get("attempts") for run in sweep.runs()]
        result.expect(attempts == [1, 1], f"attempts {attempts}")
    return result


def zombies(lab: Lab, seed: int = 0) -> Result:
    """An attempt is frozen at a random moment, a later one takes over, and the first wakes up: during it, or after."""
    result, moments = Result("zombie attempt wakes up"), random.Random(seed)
    reference = lab.reference(())
    corpus = next(iter((lab.folder / "cache" / "corpora").iterdir()))
    sweep = Sweep(lab, "zombies")
    sweep.directory.mkdir()
    shutil.copy(reference.directory / "plan.jsonl", sweep.directory)
    for run, wakes in zip(reference.runs(), ("during", "after"), strict=True):
        command = [sys.executable, str(ATTEMPT), str(sweep.directory), str(corpus), run.name]
        first = subprocess.Popen([*command, "0"], env=lab.env, stdout=subprocess.PIPE, text=True)
        mine = sweep.directory / "runs" / run.name
        wait_until(lambda mine=mine: (mine / "metrics.jsonl").exists(), "start")  # type: ignore[misc]
        time.sleep(moments.uniform(0, 2))
        first.send_signal(signal.SIGSTOP)
        second = subprocess.Popen([*command, "1"], env=lab.env, stdout=subprocess.PIPE, text=True)
        if wakes == "during":
            wait_until(lambda mine=mine: sweep.status(mine).get("attempts") == 2, "takeover")  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.5))
        else:
            second.wait()
        first.send_signal(signal.SIGCONT)
        said = [process.communicate()[0].strip() for process in (first, second)]
        result.injected += 1
        result.expect("superseded" in said[0], f"the first attempt ended with {said[0]!r}")
        result.expect(said[1].startswith("done"), f"the second attempt ended with {said[1]!r}")
    sweep.compare(result)
    return result


def clock_jumps(lab: Lab) -> Result:
    """The clocks of the processes jump: by a day back and an hour on, then by a year on."""
    result, sweep = Result("clock jumps"), Sweep(lab, "clock")
    clock = lab.folder / "clock.txt"
    process = sweep.start(*LOCAL, PYTHONPATH=INJECT, DRILL_CLOCK=str(clock))
    for jumps in ("-86400 3600", "31536000 86400"):
        rows = sweep.rows()
        wait_until(lambda rows=rows: sweep.rows() > rows + 5 or process.poll() is not None, "training")  # type: ignore[misc]
        clock.with_suffix(".part").write_text(jumps)
        clock.with_suffix(".part").rename(clock)
        result.injected += process.poll() is None
    process.wait()
    result.expect(process.returncode == 0, f"exit code {process.returncode}")
    sweep.compare(result)
    return result


def no_locks(lab: Lab) -> Result:
    """The sweep directory is on a file system whose locks fail; everything is killed once on the way."""
    result, sweep = Result("directory without locks"), Sweep(lab, "no-locks")
    sweep.directory.mkdir()
    env = {"PYTHONPATH": INJECT, "DRILL_NO_LOCKS": str(sweep.directory)}
    log = Path(f"{sweep.directory}.locks")
    probe = f"import fcntl; fcntl.flock(open({str(sweep.directory / 'probe')!r}, 'w'), fcntl.LOCK_EX)"
    refused = subprocess.run([sys.executable, "-c", probe], env=lab.env | env, capture_output=True, text=True)
    result.expect("No locks available" in refused.stderr, "the fault is not effective")
    log.unlink()
    (sweep.directory / "probe").unlink()
    process = sweep.start(*LOCAL, **env)
    under_way(sweep, process, runs=1)
    cut(sweep, process)
    result.injected += 1
    code, output = sweep.run(*LOCAL, **env)
    result.expect(code == 0, f"exit code {code}: {output[-300:]}")
    result.expect(not log.exists(), f"locks were asked for: {log.read_text() if log.exists() else ''}")
    sweep.compare(result)
    return result


def out_of_memory(lab: Lab) -> Result:
    """The memory is enough for half the micro-batch only."""
    result = Result("out of memory")
    science = (
        "batch_tokens=131072",
        "horizon.steps=10",
        "execution.micro_batch=2048",
        "grid.blocks.run.product.seed=[0]",
    )
    whole = "execution.micro_batch=4096"
    peaks = []
    for name, micro in (("memory-whole", (whole,)), ("memory-half", ())):
        sweep = Sweep(lab, name, science, how=micro)
        process = sweep.start(*LOCAL)
        peak = 0
        while process.poll() is None:
            peak = max([peak, *(process_status(pid).get("VmPeak", 0) for pid in sweep.workers(process))])
            time.sleep(0.05)
        peaks.append(peak)
    limit = 1024 * (peaks[0] + 3 * peaks[1]) // 4  # so that the first step fails already
    result.expect(peaks[0] > peaks[1] + 50_000, f"peaks {peaks} kB do not differ by enough to tell them apart")
    sweep = Sweep(lab, "memory", science, how=(whole,))
    code, output = sweep.run(*LOCAL, PYTHONPATH=INJECT, DRILL_MEMORY=str(limit))
    result.expect(code == 0, f"exit code {code}: {output[-300:]}")
    sweep.compare(result)
    for run in sweep.runs():
        status = sweep.status(run)
        result.injected += status.get("micro_batch") == 2048
        result.expect("micro-batch" in " ".join(status.get("notes", [])), f"{run}: its status does not tell: {status}")
    return result


def always_fails(lab: Lab) -> Result:
    """One run cannot write its metrics: it is tried three times and left with its error, the other is finished."""
    result, sweep = Result("a run that always fails"), Sweep(lab, "fails")
    broken, other = (sweep.directory / "runs" / run.name for run in lab.reference(()).runs())
    (broken / "metrics.jsonl").mkdir(parents=True)
    code, _ = sweep.run(*LOCAL)
    status = sweep.status(broken)
    result.injected = status.get("failures", 0)
    result.expect(code != 0, "the sweep's exit code does not say that a run has failed")
    result.expect(status.get("failures") == 3, f"failed {status.get('failures')} times instead of 3")
    result.expect("metrics.jsonl" in str(status.get("error")), f"its error is {status.get('error')}")
    result.expect(sweep.status(other).get("status") == "done", "the other run is not done")
    result.expect("failed" in sweep.verb("status"), "isoloss status does not show it")
    (broken / "metrics.jsonl").rmdir()
    finish(sweep, result)
    return result


def all_fail_alike(lab: Lab) -> Result:
    """Every run fails with one error: the sweep stops after the first few and says why."""
    science = ("grid.blocks.run.product.seed=[0,1,2,3,4,5,6,7]", "horizon.steps=200")
    result, sweep = Result("first runs all fail alike"), Sweep(lab, "alike", science, how=("launcher.retries=0",))
    runs = [sweep.directory / "runs" / run.name for run in lab.reference(science).runs()]
    for run in runs:
        (run / "metrics.jsonl").mkdir(parents=True)
    code, output = sweep.run(*LOCAL)
    result.injected = sweep.statuses().count("failed")
    result.expect(code != 0, "exit code 0")
    result.expect(result.injected == 5, f"{result.injected} runs failed before the sweep stopped, instead of 5")
    result.expect("have all failed with" in output, f"it does not say why it stopped: {output[-300:]}")
    for run in runs:
        (run / "metrics.jsonl").rmdir()
    finish(sweep, result)
    return result
