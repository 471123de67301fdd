"""The benchmark of training speed, and the other ways to train that it compares with."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sweep.accounting import count_flops
from sweep.batches import Sequences, test_sequences
from sweep.corpus import Corpus
from sweep.spec import PlannedRun
from sweep.train import train_run

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_throughput", SCRIPTS / "bench_throughput.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["bench_throughput.py", *arguments, "--json", str(file)])
    bench.main()
    found: dict[str, object] = json.loads(file.read_text())
    return found


def test_every_way_trains_and_is_compared(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    shapes = ("--shapes", "2x16x1", "1x8x1", "--batches", "2", "--n-ctx", "64", "--runs", "3", "--device", "cpu")
    found = measured(bench, monkeypatch, file, *shapes, "--rounds", "2", "--seconds", "0.1", "schedule.warmup_steps=0")
    assert (found["precision"], found["threads"], found["n_ctx"]) == ("fp32", 1, 64)
    peak = found["peak_flops"]
    cells = found["cells"]
    assert isinstance(cells, list)
    assert isinstance(peak, float)
    assert peak == max(found["peak_by_size"].values())  # type: ignore[attr-defined]
    assert [each["shape"] for each in cells] == ["2x16x1", "1x8x1"]
    for each in cells:
        assert each["runs_stacked"] == 3
        assert list(each["arms"]) == list(bench.ARMS)
        for arm in each["arms"].values():
            speed = arm["tokens_per_s"]
            assert 0 < speed["low"] <= speed["median"] <= speed["high"] < math.inf
            assert arm["share_of_peak"] == pytest.approx(speed["median"] * each["flops_per_token"] / peak)
            assert arm["loss"]["first"] == pytest.approx(math.log(256), rel=0.1)
            assert arm["loss"]["last"] < arm["loss"]["first"] - 0.3
        first = each["arms"]
        assert first["single"]["loss"]["first"] == pytest.approx(first["plain"]["loss"]["first"], rel=1e-4)
        assert all(0 < ratio["median"] < math.inf for ratio in each["ratios"].values())
        assert len(each["ratios"]) == 3
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["bench_throughput.py", "--markdown", str(file)])
    bench.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| 2x16 | 6,144 | 2 | 3 | ")


def test_flops_are_those_of_the_project(
    bench: ModuleType, plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus
) -> None:
    planned = plan_tiny(steps=100)
    arm = bench.ready(lambda: bench.ours([planned], tiny_corpus, "cpu"), "cpu", 0.05)
    arm.measure()
    assert arm.tokens == planned.spec.batch_tokens
    assert arm.speeds[0] * count_flops(planned.spec.model).total < 1e13


def test_an_arm_for_which_memory_does_not_suffice_is_left_out(bench: ModuleType) -> None:
    def make() -> object:
        raise MemoryError

    assert bench.ready(make, "cpu", 0.1) is None
    with pytest.raises(RuntimeError, match="another reason"):
        bench.ready(lambda: (_ for _ in ()).throw(RuntimeError("another reason")), "cpu", 0.1)


def test_the_plain_loop_is_the_same_training(
    bench: ModuleType, plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus, tmp_path: Path
) -> None:
    """As isoloss's own, in losses and evaluations: with an average of the weights, clipping and a decay."""
    from benchmarks.baselines import train_plain

    planned = plan_tiny(
        steps=30,
        weight_average=0.2,
        grad_clip=0.5,
        schedule={"name": "linear"},
        execution={"eval_points_per_decade": 4},
    )
    assert train_run(planned, tmp_path / "own", tiny_corpus, "cpu") == "done"
    train_plain(planned, tiny_corpus, "cpu", tmp_path / "plain.jsonl")
    own, plain = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "own" / "metrics.jsonl", tmp_path / "plain.jsonl")
    )
    assert [row["step"] for row in plain] == [row["step"] for row in own]
    for row, other in zip(plain, own, strict=True):
        assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)


def test_the_trainer_takes_the_steps_asked_for(
    bench: ModuleType, plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from benchmarks.baselines import casting, fresh_model, mean_loss, train_trainer

    spec = plan_tiny().spec
    model, sequences = fresh_model(spec, "cpu"), Sequences(tiny_corpus.train, spec.model.n_ctx, spec.seed)
    test = torch.from_numpy(test_sequences(tiny_corpus.test, spec.model.n_ctx, 512))
    before = mean_loss(model, test, casting("fp32", "cpu"))
    assert train_trainer(model, spec, sequences, "cpu", 2, 20, tmp_path) > 0
    assert mean_loss(model, test, casting("fp32", "cpu")) < before - 0.3


def test_the_peak_is_that_of_the_largest_products(bench: ModuleType) -> None:
    found = bench.matrix_peak("cpu", "fp32", 0.01)
    assert list(found) == [512, 1024, 2048]
    assert all(1e8 < flops < 1e14 for flops in found.values())
