"""Training on several real ranks: the curve of one, whether each holds the whole model or a part of it; resuming on
other numbers of ranks; stops, losses and faults that all ranks agree on."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from sweep.forward import forward_function
from sweep.lease import LeaseLost, take
from sweep.record import read_record, read_steps
from sweep.schema import CHECKPOINT_DIR, METRICS_FILE, InputError
from sweep.spec import PlannedRun
from sweep.train import train_run
from sweep.world import World

WHOLE, SPREAD = {"shard_above": 1e9}, {"shard_above": 0.0}


def train_each(world: World, jobs: list[tuple[PlannedRun, Path]], corpus: Any) -> list[str]:
    """Several runs in turn, with one process group."""
    return [train_run(planned, run_dir, corpus, "cpu", world=world) for planned, run_dir in jobs]


def assert_same_curve(one: Path, other: Path) -> None:
    """To float tolerance: every step's loss and gradient norm, every evaluation with its error."""
    steps, others = read_steps(one), read_steps(other)
    np.testing.assert_array_equal(steps["lr"], others["lr"])
    np.testing.assert_allclose(steps["train_loss"], others["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(steps["grad_norm"], others["grad_norm"], rtol=1e-4)
    record, known = read_record(one), read_record(other)
    assert record.run_id == known.run_id
    assert [row["step"] for row in record.rows] == [row["step"] for row in known.rows]
    for name in ("test_loss", "test_loss_se", "train_loss"):
        np.testing.assert_allclose([r[name] for r in record.rows], [r[name] for r in known.rows], rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_curve_does_not_depend_on_the_ranks(plan_tiny, tiny_corpus, tmp_path: Path, size: int) -> None:
    """Seven sequences in micro-batches of two: shares of 3 and 4, or of 1 and 2, and passes that some ranks lack."""
    science: list[dict[str, Any]] = [{"family": "gpt2", "weight_average": 0.4}, {"family": "llama", "grad_clip": 0.3}]
    jobs = []
    for number, fields in enumerate(science):
        for execution in (WHOLE, SPREAD):
            planned = plan_tiny(steps=8, sequences=7, execution={"micro_batch": 2, **execution}, **fields)
            jobs.append((planned, tmp_path / f"{number}-{execution['shard_above']:g}"))
        train_run(planned, tmp_path / f"{number}", tiny_corpus, "cpu")
    assert run_ranks(size, train_each, jobs, tiny_corpus) == [["done"] * 4] * size
    for job, run_dir in jobs:
        assert_same_curve(run_dir, tmp_path / run_dir.name.partition("-")[0])
        assert read_record(run_dir).status["ranks"] == size
        shards = [f"-{rank}of{size}" for rank in range(size)] if job.execution.shard_above == 0 else [""]
        files = {path.name for path in (run_dir / CHECKPOINT_DIR).glob("*.safetensors")}
        assert files == {f"step-8-a0{shard}.safetensors" for shard in shards}


def test_fewer_sequences_than_ranks(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    jobs = [(plan_tiny(steps=6, sequences=2, execution=e), tmp_path / f"{e['shard_above']:g}") for e in (WHOLE, SPREAD)]
    train_run(jobs[0][0], tmp_path / "one", tiny_corpus, "cpu")
    assert run_ranks(3, train_each, jobs, tiny_corpus) == [["done"] * 2] * 3
    for _, run_dir in jobs:
        assert_same_curve(run_dir, tmp_path / "one")


def train_until(world: World, planned: PlannedRun, run_dir: Path, corpus: Any, step: int | None) -> str:
    """Where there is a `step`, the last rank is told to stop at the first evaluation from it on."""
    processes = world.each(os.getpid)

    def watch(row: dict[str, Any]) -> None:
        if step is not None and row["step"] >= step:
            os.kill(processes[-1], signal.SIGTERM)

    return train_run(planned, run_dir, corpus, "cpu", watch, world=world)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_blocks_are_sharded_too(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    execution = {**SPREAD, "compile": True, "micro_batch": 4}
    planned = plan_tiny(steps=3, schedule={"warmup_steps": 0}, execution=execution)
    train_run(plan_tiny(steps=3, schedule={"warmup_steps": 0}), tmp_path / "one", tiny_corpus, "cpu")
    assert run_ranks(2, train_each, [(planned, tmp_path / "compiled")], tiny_corpus) == [["done"]] * 2
    assert_same_curve(tmp_path / "compiled", tmp_path / "one")


@pytest.mark.parametrize(
    ("family", "attempts"),
    [
        ("gpt2", [(1, WHOLE, 6), (2, WHOLE, 12), (4, SPREAD, 17), (2, SPREAD, 22), (1, SPREAD, None)]),
        ("llama", [(2, SPREAD, 6), (3, WHOLE, 15), (3, SPREAD, None)]),
    ],
)
def test_run_goes_on_with_another_number_of_ranks(
    plan_tiny, tiny_corpus, tmp_path: Path, family: str, attempts: list[tuple[int, dict[str, float], int | None]]
) -> None:
    fields = {"steps": 40, "weight_average": 0.3, "family": family}
    train_run(plan_tiny(**fields), tmp_path / "whole", tiny_corpus, "cpu")
    stopped = []
    for size, execution, until in attempts:
        arguments = (plan_tiny(**fields, execution=execution), tmp_path / "moved", tiny_corpus, until)
        statuses = [train_until(World(), *arguments)] if size == 1 else run_ranks(size, train_until, *arguments)
        assert statuses == ["done" if until is None else "running"] * size
        stopped.append(read_record(tmp_path / "moved").status["step"])
    assert stopped == sorted(set(stopped))
    assert stopped[-1] == 40
    assert_same_curve(tmp_path / "moved", tmp_path / "whole")
    assert read_record(tmp_path / "moved").status["attempts"] == len(attempts)


def superseded(world: World, planned: PlannedRun, run_dir: Path, corpus: Any) -> tuple[str, bool]:
    """Another attempt takes the run over at its third evaluation."""
    lease = take(run_dir, "run") if world.rank == 0 else None
    seen = []

    def watch(row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) == 3:
            (run_dir / "lease.99").write_text("free")

    try:
        return train_run(planned, run_dir, corpus, "cpu", watch, lease, world), world.broken
    except LeaseLost:
        return "lost", world.broken


def refused(world: World, planned: PlannedRun, run_dir: Path, corpus: Any) -> tuple[str, bool]:
    """What the run is refused with."""
    try:
        return train_run(planned, run_dir, corpus, "cpu", world=world), world.broken
    except InputError as error:
        return str(error), world.broken


def agree(world: World, plans: dict[str, PlannedRun], folder: Path, corpus: Any) -> list[Any]:
    """What all ranks have to agree on, one after another with one process group."""
    return [
        superseded(world, plans["superseded"], folder / "superseded", corpus),
        refused(world, plans["adafactor"], folder / "adafactor", corpus),
        train_run(plans["damaged"], folder / "damaged", corpus, "cpu", world=world),
    ]


def test_ranks_agree_on_what_goes_wrong_and_go_on(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    often = {**SPREAD, "checkpoint_seconds": 0.0, "save_model": True}
    plans = {
        "superseded": plan_tiny(steps=20, execution=SPREAD),
        "adafactor": plan_tiny(name="adafactor", execution=SPREAD),
        "damaged": plan_tiny(steps=12, weight_average=0.2, execution=often),
    }
    run_ranks(2, train_each, [(plans["damaged"], tmp_path / "damaged")], tiny_corpus)
    train_run(plans["damaged"], tmp_path / "one", tiny_corpus, "cpu")
    path = tmp_path / "damaged" / CHECKPOINT_DIR / "step-12-a0-1of2.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    results = run_ranks(2, agree, plans, tmp_path, tiny_corpus)
    assert results[0] == results[1]
    lost, said, done = results[0]
    assert lost == ("lost", False)
    assert len((tmp_path / "superseded" / METRICS_FILE).read_text().splitlines()) == 3
    assert said[0].startswith("optimizer adafactor cannot be spread")
    assert not said[1]
    assert done == "done"
    assert list(path.parent.glob("step-12-a0*.corrupt"))
    assert any("step-12-a0" in note for note in read_record(tmp_path / "damaged").status["notes"])
    assert_same_curve(tmp_path / "damaged", tmp_path / "one")
    forward, tokens = forward_function(plans["damaged"].spec.model), torch.arange(64).view(1, 2, 32).expand(2, -1, -1)
    saved = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("damaged", "one")]
    logits = forward({name: torch.stack([one[name] for one in saved]) for name in saved[0]}, tokens)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def little_memory(world: World, planned: PlannedRun, run_dir: Path, corpus: Any, room: float) -> str:
    """Only `room` bytes more than now; what the attempt ends in."""
    size = re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())
    assert size is not None
    resource.setrlimit(resource.RLIMIT_AS, (int(size[1]) * 1024 + int(room), -1))
    try:
        return train_run(planned, run_dir, corpus, "cpu", world=world)
    except RuntimeError as error:
        return f"{type(error).__name__} {error}"


LARGE = {
    "steps": 2,
    "sequences": 1800,
    "n_layer": 1,
    "d_ff": 1024,
    "schedule": {"warmup_steps": 0},
}  # hundreds of MB a batch


def test_micro_batch_is_halved_where_memory_runs_out(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(**LARGE)
    train_run(planned, tmp_path / "roomy", tiny_corpus, "cpu")
    assert run_ranks(1, little_memory, planned, tmp_path / "tight", tiny_corpus, 450e6) == ["done"]
    assert_same_curve(tmp_path / "tight", tmp_path / "roomy")
    status = read_record(tmp_path / "tight").status
    assert status["micro_batch"] in (900, 450, 225)
    assert status["notes"][0] == "out of memory with a micro-batch of 1800 sequences; going on with 900"
    assert read_record(tmp_path / "roomy").status["micro_batch"] == 1800


def test_sharded_attempt_out_of_memory_leaves_a_smaller_micro_batch(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned, run_dir = plan_tiny(**LARGE, execution=SPREAD), tmp_path / "spread"
    train_run(planned, tmp_path / "one", tiny_corpus, "cpu")
    for _ in range(8):
        ended = run_ranks(2, little_memory, planned, run_dir, tiny_corpus, 450e6)
        if ended == ["done"] * 2:
            break
        assert any("memory" in each for each in ended), ended
        status = json.loads((run_dir / "status.json").read_text())
        assert status["status"] == "running"
        assert status["micro_batch"] < 900
        assert status["halved_in"] == [0]  # once for all ranks
    assert ended == ["done"] * 2
    status = read_record(run_dir).status
    assert status["attempts"] > 1
    assert status["notes"][0] == "out of memory with a micro-batch of 900 sequences; going on with 450"
    assert_same_curve(run_dir, tmp_path / "one")


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_gpus_follow_one(plan_tiny, tiny_corpus, tmp_path: Path, precision: str) -> None:
    jobs = []
    for execution in (WHOLE, SPREAD):
        planned = plan_tiny(steps=20, precision=precision, weight_average=0.4, execution=execution)
        jobs.append((planned, tmp_path / f"{execution['shard_above']:g}"))
    train_run(jobs[0][0], tmp_path / "one", tiny_corpus, "cuda")
    assert run_ranks(2, train_each_on_gpus, jobs, tiny_corpus) == [["done"] * 2] * 2
    known = read_steps(tmp_path / "one")["train_loss"]
    for _, run_dir in jobs:
        found = read_steps(run_dir)["train_loss"]
        np.testing.assert_allclose(found, known, rtol=1e-4 if precision == "fp32" else 0.02)


def train_each_on_gpus(world: World, jobs: list[tuple[PlannedRun, Path]], corpus: Any) -> list[str]:
    return [train_run(planned, run_dir, corpus, "cuda", world=world) for planned, run_dir in jobs]


def test_torchrun_trains_one_run_and_one_rank_speaks(tmp_path: Path) -> None:
    """The command itself, on one process and then, in another folder, on two that share the model."""
    text = Path(json.__file__).parent
    arguments = ["train", "model.n_ctx=16", "model.d_head=8", "model.shape=1x8", "horizon.steps=8", "batch_tokens=128"]
    arguments += ["schedule.warmup_steps=2", "data=text", f"data.files=['{text}/*.py']", "data.name=json"]
    arguments += ["data.test_tokens=512", "tracking=none", "launcher.device=cpu", "execution.shard_above=0"]
    env = os.environ | {"ISOLOSS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = {1: ["-m"], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]}
    printed = {}
    for size, start in command.items():
        launched = [sys.executable, *start, "sweep.cli", *arguments, f"sweep_dir={tmp_path / str(size)}"]
        ended = subprocess.run(launched, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        printed[size] = ended.stdout.replace(str(tmp_path / str(size)), "")
    assert printed[1] == printed[2]
    assert printed[1].splitlines()[-1].endswith(next((tmp_path / "1" / "runs").iterdir()).name)
    runs = [next((tmp_path / str(size) / "runs").iterdir()) for size in command]
    assert_same_curve(*runs)
    assert [read_record(run).status["ranks"] for run in runs] == [1, 2]
