"""Settings of the device that computes: compiled code is kept for later processes, bf16 leaves nothing behind."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep.device import autocast, numerics
from sweep.learner import make_learner
from sweep.spec import Execution, PlannedRun

# Two steps of a tiny compiled model, after which it says what the compiler did.
COMPILES = """
import json, torch
from sweep.device import numerics
from sweep.spec import Execution

def loss(x, weight):
    return torch.nn.functional.gelu(x @ weight).pow(2).sum()

weight = torch.ones(8, 8, requires_grad=True)
with numerics("fp32", Execution(compile=True), "cpu"):
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    for i in range(3):
        compiled(torch.full((4, 8), float(i)), weight).backward()
counters = torch._dynamo.utils.counters
print(json.dumps({"graphs": counters["stats"]["unique_graphs"], **counters["inductor"]}))
"""


# A run of two steps, after which it says what was imported.
TRAINS = """
import json, sys
from pathlib import Path
import numpy as np
from sweep.corpus import Corpus
from sweep.spec import DataSpec, Execution, ModelSpec, OptimizerSpec, PlannedRun, RunSpec, ScheduleSpec, Source
from sweep.train import train_run

spec = RunSpec(
    model=ModelSpec(sys.argv[2], 1, 8, 1, 8, 32, 8, 256),
    data=DataSpec("text", "t", "bytes", 256, 0.1, 64),
    batch_tokens=32,
    steps=2,
    optimizer=OptimizerSpec("adamw", 1e-3, 0.9, 0.95, 1e-8, 0.0, 1.0),
    schedule=ScheduleSpec("constant", 0, 2),
)
text = np.arange(4096, dtype=np.uint8)
corpus = Corpus(Path(), text, text, "hash", 256, 1.0, {})
assert train_run(PlannedRun(spec, Source(), Execution()), Path(sys.argv[1]), corpus, "cpu") == "done"
print(json.dumps(sorted({name for name in sys.modules if name.count(".") < 2})))
"""
NEEDLESS = {"torch._dynamo", "torch._inductor", "sympy", "transformers", "datasets", "pandas", "wandb", "hydra", "rich"}


def in_new_process(script: str, cache: Path, *arguments: str) -> Any:
    """What `script` prints last in a new process that keeps its cache in `cache`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**kept, "ISOLOSS_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_imports_nothing_that_it_does_not_use(tmp_path: Path, family: str) -> None:
    imported = in_new_process(TRAINS, tmp_path / "cache", str(tmp_path / "run"), family)
    assert "sweep.train" in imported
    assert NEEDLESS & set(imported) == set()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_later_process_finds_what_an_earlier_one_has_compiled(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = in_new_process(COMPILES, cache)
    assert (first["graphs"], first.get("fxgraph_cache_hit", 0)) == (1, 0)  # one graph for three steps
    assert first["fxgraph_cache_miss"] == 2  # forward and backward
    second = in_new_process(COMPILES, cache)
    assert second["graphs"] == 1
    assert second["fxgraph_cache_hit"] == 2
    assert second.get("fxgraph_cache_miss", 0) == 0
    assert [path.name for path in cache.iterdir()] == ["compiled"]


def test_the_user_may_choose_another_place_for_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    with numerics("fp32", Execution(compile=True), "cpu"):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")


def test_a_cache_that_cannot_be_written_does_not_hinder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with numerics("fp32", Execution(compile=True), "cpu"):
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


# Page faults of a process that makes 32 MB of arrays and frees them, over and over, before and after it keeps memory.
FAULTS = """
import json, resource, torch
from sweep.device import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [torch.ones(2**21) for _ in range(4)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_memory()
faults()
print(json.dumps([before, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_is_kept_needs_no_page_faults(tmp_path: Path) -> None:
    before, after = in_new_process(FAULTS, tmp_path)
    assert after < 20 <= before  # with huge pages there are few


def test_bf16_keeps_no_casts_of_weights() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    x = torch.ones(4, 4)
    with autocast("bf16", "cpu"):
        before = x @ weight
        with torch.no_grad():
            weight.mul_(2)
        assert torch.equal(x @ weight, 2 * before)


def test_gradients_in_rows_are_no_reason_to_warn(plan_tiny: Callable[..., PlannedRun]) -> None:
    learner = make_learner([plan_tiny(seed=seed) for seed in (0, 1)], "cpu")
    tokens = torch.zeros(2, 4, 32, dtype=torch.int64)
    torch.set_warn_always(True)  # torch tells of gradients that are not dense once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learner.accumulate(tokens, tokens)
    finally:
        torch.set_warn_always(False)
