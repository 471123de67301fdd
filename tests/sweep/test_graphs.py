"""Recorded passes: which calls are recorded, what is replayed, and on a GPU the same numbers as without."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.corpus import Corpus
from sweep.graphs import WARM_UP, Graphed, Recorder, Work, launch_bound
from sweep.spec import ModelSpec, PlannedRun
from sweep.stack import Stack

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Model:
    """Two layers with gradients and losses at fixed places: what a recorded pass works on."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.weights = [torch.randn(16, 16).to(device).requires_grad_() for _ in range(2)]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self.loss = torch.zeros(1, device=device)
        self.calls = 0

    def accumulate(self, x: Tensor, y: Tensor, half: bool = False) -> None:
        self.calls += 1
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False):
            loss = F.mse_loss(F.gelu(x @ self.weights[0]) @ self.weights[1], y)
        loss.backward()
        self.loss += loss.detach()

    def results(self) -> list[Tensor]:
        return [self.loss, *(weight.grad for weight in self.weights if weight.grad is not None)]


def batches(device: str, count: int = 3 * WARM_UP) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(2, 8 + 8 * (i % 2), 16, generator=generator).to(device)) for i in range(count)]


def on_the_host(work: Work) -> Work:
    """Recording where a computation is its own record: the function on the fixed places."""
    return work


def test_each_shape_is_recorded_once_after_warm_up_and_every_call_counts() -> None:
    recorded: list[Work] = []

    def recorder(work: Work) -> Work:
        recorded.append(work)
        return work

    plain, model = Model("cpu"), Model("cpu")
    graphed = Graphed(model.accumulate, "cpu", pytest.fail, recorder)
    for i, (x, y) in enumerate(batches("cpu")):
        graphed(x, y)
        plain.accumulate(x, y)
        assert len(recorded) == sum(i >= 2 * WARM_UP + shape for shape in range(2))
        for ours, theirs in zip(model.results(), plain.results(), strict=True):
            assert torch.equal(ours, theirs)


def test_values_are_part_of_what_is_recorded() -> None:
    found: list[tuple[int, float]] = []
    total = torch.zeros(1)

    def add(x: Tensor, start: int) -> None:
        found.append((start, float(x)))
        total.add_(x * start)

    graphed = Graphed(add, "cpu", pytest.fail, on_the_host)
    calls = [(float(i), i % 3) for i in range(6 * WARM_UP)]
    for x, start in calls:
        graphed(torch.tensor([x]), start)
    assert found == [(start, x) for x, start in calls]
    assert float(total) == sum(x * start for x, start in calls)


def test_what_cannot_be_recorded_is_computed_call_by_call_and_said_once() -> None:
    notes: list[str] = []
    tried: list[Work] = []

    def recorder(work: Work) -> Work:
        tried.append(work)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    plain, model = Model("cpu"), Model("cpu")
    graphed = Graphed(model.accumulate, "cpu", notes.append, recorder)
    for x, y in batches("cpu"):
        graphed(x, y)
        plain.accumulate(x, y)
    assert [torch.equal(a, b) for a, b in zip(model.results(), plain.results(), strict=True)] == [True] * 3
    assert len(tried) == 1
    assert notes == [
        "no CUDA graph (operation not permitted when stream is capturing); passes are launched kernel by kernel"
    ]


def test_moved_tensors_are_recorded_anew() -> None:
    model = Model("cpu")
    recordings: list[Work] = []

    def recorder(work: Work) -> Work:
        recordings.append(work)
        return work

    graphed = Graphed(model.accumulate, "cpu", pytest.fail, recorder)
    x, y = batches("cpu")[0]
    for _ in range(WARM_UP + 2):
        graphed(x, y)
    assert len(recordings) == 1
    graphed.forget()
    for _ in range(WARM_UP):
        graphed(x, y)
    assert len(recordings) == 1
    graphed(x, y)
    assert len(recordings) == 2


def test_a_cpu_just_calls() -> None:
    model = Model("cpu")
    graphed = Graphed(model.accumulate, "cpu", pytest.fail)
    for x, y in batches("cpu", 5):
        graphed(x, y)
    assert (model.calls, graphed._seen) == (5, {})


def test_a_stack_trains_through_recordings_as_it_does_by_calls(
    plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(recorder: Recorder | None) -> list[list[float]]:
        stack = Stack([plan_tiny(seed=seed, steps=100) for seed in range(3)], tiny_corpus, "cpu")
        runs, learner = list(stack.runs), stack.learner
        learner.graphed = Graphed(learner.passes, "cpu", pytest.fail, recorder)
        monkeypatch.setattr(learner, "accumulate", learner.graphed)
        stack.advance(80, lambda: False)
        stack.leave(runs[1])
        stack.advance(160, lambda: False)
        assert len(learner.graphed._recorded) == bool(recorder)
        return [run.series["train_loss"] for run in runs]

    assert losses(on_the_host) == losses(None)


def test_a_stack_frees_its_memory_as_soon_as_it_goes(plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus) -> None:
    stack = Stack([plan_tiny(seed=seed) for seed in range(2)], tiny_corpus, "cpu")
    stack.advance(16, lambda: False)
    values = weakref.ref(stack.learner.flat)
    gc.disable()  # a device may be too small for the next stack until the collector comes round
    try:
        del stack
        assert values() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("layers", "width", "tokens", "bound"),
    [
        (2, 16, 2**17, True),
        (4, 64, 2**17, True),
        (8, 256, 2**14, True),
        (8, 256, 2**18, False),
        (12, 768, 2**15, False),
    ],
)
def test_small_passes_are_launch_bound(layers: int, width: int, tokens: int, bound: bool) -> None:
    model = ModelSpec("gpt2", layers, width, width // 16, 16, 4 * width, 256, 256)
    assert launch_bound(model, tokens) is bound


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("half", [False, True])
def test_replays_on_cuda_give_the_numbers_of_calls(half: bool) -> None:
    plain, model = Model("cuda"), Model("cuda")
    graphed = Graphed(model.accumulate, "cuda", pytest.fail)
    for x, y in batches("cuda", 12 * WARM_UP):
        graphed(x, y, half)
        plain.accumulate(x, y, half)
    assert len(graphed._recorded) == 2
    assert model.calls == 2 * (WARM_UP + 1)  # replays call nothing
    for ours, theirs in zip(model.results(), plain.results(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.cuda
@needs_cuda
def test_replays_on_cuda_do_not_wait_for_the_device() -> None:
    model = Model("cuda")
    graphed = Graphed(model.accumulate, "cuda", pytest.fail)
    given = batches("cuda", 6 * WARM_UP)
    for x, y in given[: 3 * WARM_UP]:
        graphed(x, y)
    assert len(graphed._recorded) == 2
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in given[3 * WARM_UP :]:
            graphed(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@needs_cuda
def test_a_failed_capture_leaves_the_device_usable() -> None:
    notes: list[str] = []
    total = torch.zeros(1, device="cuda")

    def reads(x: Tensor) -> None:
        total.add_(float(x.sum()))  # waits for the device, which no capture allows

    graphed = Graphed(reads, "cuda", notes.append)
    before = torch.cuda.current_stream()
    for _ in range(2 * WARM_UP):
        graphed(torch.ones(3, device="cuda"))
    assert torch.cuda.current_stream() == before
    assert float(total) == 6 * WARM_UP
    assert len(notes) == 1


@pytest.mark.cuda
@needs_cuda
def test_graphs_of_one_stack_outlive_those_of_another() -> None:
    def stack() -> tuple[Model, Callable[..., None]]:
        model = Model("cuda")
        graphed = Graphed(model.accumulate, "cuda", pytest.fail)
        for x, y in batches("cuda", 3 * WARM_UP):
            graphed(x, y)
        return model, graphed

    first, second = stack(), stack()
    expected = [tensor.clone() for tensor in second[0].results()]
    del first
    torch.cuda.empty_cache()
    model, graphed = second
    for tensor in model.results():
        tensor.zero_()
    for x, y in batches("cuda", 3 * WARM_UP):
        graphed(x, y)
    for ours, theirs in zip(model.results(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_steps_do_not_wait_for_the_device(
    plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus, precision: str
) -> None:
    """The loop of `Stack.advance` without its end, which reads the losses."""
    runs = [plan_tiny(sequences=4 * (1 + seed), seed=seed, steps=100, precision=precision) for seed in range(3)]
    stack = Stack(runs, tiny_corpus, "cuda")
    stack.advance(48, lambda: False)
    assert stack.learner.graphed._recorded
    torch.cuda.set_sync_debug_mode("error")
    try:
        block = stack._read(96)
        for start in range(0, 96, 4):
            assert stack._accumulate(block[:, start : start + 4], 4)
            stack._update(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [run.step for run in stack.runs] == [36, 18, 12]
    assert not stack.notes


@pytest.mark.cuda
@needs_cuda
def test_a_stack_goes_on_recorded_when_runs_leave(
    plan_tiny: Callable[..., PlannedRun], tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(recorded: bool) -> list[list[float]]:
        monkeypatch.setattr("sweep.learner.launch_bound", lambda model, tokens: recorded)
        stack = Stack([plan_tiny(seed=seed, steps=100) for seed in range(3)], tiny_corpus, "cuda")
        runs = list(stack.runs)
        stack.advance(80, lambda: False)
        stack.leave(runs[1])
        stack.advance(160, lambda: False)
        assert bool(stack.learner.graphed._recorded) == recorded
        return [run.series["train_loss"] for run in runs]

    for ours, theirs in zip(losses(True), losses(False), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
