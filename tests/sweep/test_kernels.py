"""The layers of stacked models against the plain torch formulas: values, gradients, runs that do not touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sweep import kernels
from sweep.kernels import LOGITS, head_losses
from sweep.model import NORM_EPS

N, D, V = 48, 24, 61
TOKENS = torch.randint(0, V // 4, (5, 3, 16), generator=torch.Generator().manual_seed(9))  # many of them equal
TARGETS = torch.randint(0, V, (5, N), generator=torch.Generator().manual_seed(8))
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
some_runs = pytest.mark.parametrize("runs", [1, 3])


class Kernel(NamedTuple):
    """A function of `sweep.kernels`, its plain formula for one run, and the shapes of a run's arguments."""

    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    shapes: list[tuple[int, ...]]


KERNELS = {
    "linear": Kernel(kernels.linear, lambda x, w, b: x @ w + b, [(N, D), (D, 40), (40,)]),
    "linear without bias": Kernel(kernels.linear, lambda x, w: x @ w, [(N, D), (D, 40)]),
    "layer norm": Kernel(
        kernels.layer_norm, lambda x, w, b: F.layer_norm(x.float(), (D,), w, b, NORM_EPS), [(N, D), (D,), (D,)]
    ),
    "rms norm": Kernel(kernels.rms_norm, lambda x, w: F.rms_norm(x.float(), (D,), w, NORM_EPS), [(N, D), (D,)]),
    "gelu": Kernel(kernels.gelu, lambda x: F.gelu(x, approximate="tanh"), [(N, 4 * D)]),
    "attention": Kernel(
        kernels.causal_attention,
        lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(_later(q), -torch.inf).softmax(-1) @ v,
        [(2, N, 8)] * 3,
    ),
    "head": Kernel(
        lambda x, w: head_losses(x, w, TARGETS[: len(x)].to(x.device)), lambda x, w: x @ w.mT, [(N, D), (V, D)]
    ),
    "embedding": Kernel(lambda w: kernels.embed(TOKENS[: len(w)].to(w.device), w), lambda w: w, [(V, D)]),
}
each = pytest.mark.parametrize("name", KERNELS)


def _later(q: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)


def plain(name: str, run: int, inputs: list[Tensor]) -> Tensor:
    """The plain formula's result for one run, of inputs without the leading axis."""
    value = KERNELS[name].plain(*inputs)
    if name == "head":
        return F.cross_entropy(value.float(), TARGETS[run].to(value.device), reduction="sum")
    return value[TOKENS[run].flatten().to(value.device)] if name == "embedding" else value


def arguments(name: str, runs: int, device: str = "cpu") -> list[Tensor]:
    """Random arguments with the leading run axis; views of rows that hold more, as stacked weights are."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for shape in KERNELS[name].shapes:
        size = torch.Size(shape).numel()
        rows = torch.randn(runs, size + 7, generator=generator).to(device)
        made.append(rows[:, :size].view(runs, *shape).requires_grad_())
    return made


def with_gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The result and its gradients by the inputs, under an upstream gradient that differs everywhere."""
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(result)
    return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]


def expected(name: str, inputs: list[Tensor]) -> list[Tensor]:
    runs = len(inputs[0])
    return with_gradients(torch.stack([plain(name, r, [x[r] for x in inputs]) for r in range(runs)]), inputs)


@pytest.fixture(params=[False, True], ids=["whole", "in parts"])
def parts(request, monkeypatch) -> None:
    """Everything at once, and with limits so small that all is done in uneven parts."""
    monkeypatch.setattr(kernels, "SMALL", 0)
    if request.param:
        monkeypatch.setattr(kernels, "BLOCK", 100)
        monkeypatch.setattr(kernels, "LEAST_TOKENS", 1)
        monkeypatch.setattr(kernels, "LOGITS", dict.fromkeys(LOGITS, 20 * V))


@on_devices
@some_runs
@each
def test_values_and_gradients_are_those_of_the_plain_formula(name, runs, device, parts) -> None:
    inputs = arguments(name, runs, device)
    ours = with_gradients(KERNELS[name].ours(*inputs), inputs)
    for got, wanted in zip(ours, expected(name, inputs), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@on_devices
@each
def test_under_bf16_autocast_all_agree_to_its_precision(name, device) -> None:
    inputs = arguments(name, 3, device)
    exact = expected(name, inputs)
    with torch.autocast(device, torch.bfloat16):
        ours = with_gradients(KERNELS[name].ours(*inputs), inputs)
    for got, wanted in zip(ours, exact, strict=True):
        assert float((got.float() - wanted).norm() / wanted.norm()) < 0.01
    if name == "head":
        assert ours[0].dtype == torch.float32


@each
def test_values_are_the_same_where_no_gradients_are_wanted(name) -> None:
    inputs = arguments(name, 3)
    with torch.no_grad():
        value = KERNELS[name].ours(*inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, KERNELS[name].ours(*inputs).detach(), rtol=0, atol=0)


@each
def test_a_run_of_not_a_number_leaves_the_others_bit_for_bit(name) -> None:
    inputs, broken = arguments(name, 5), arguments(name, 5)
    with torch.no_grad():
        for x in broken:
            x[2] = torch.nan
    before = with_gradients(KERNELS[name].ours(*inputs), inputs)
    after = with_gradients(KERNELS[name].ours(*broken), broken)
    others = [0, 1, 3, 4]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[others], b[others])
    assert after[0][2].isnan().any()


@pytest.mark.parametrize("runs", [1, 2])
@each
def test_results_of_a_run_on_a_cpu_do_not_depend_on_how_many_there_are(name, runs) -> None:
    inputs = arguments(name, 5)
    few = [x[:runs].detach().requires_grad_() for x in inputs]
    together = KERNELS[name].ours(*inputs)
    upstream = torch.randn(together.shape, generator=torch.Generator().manual_seed(3))
    all_wanted = [together, *torch.autograd.grad(together, inputs, upstream)]
    alone = KERNELS[name].ours(*few)
    fused = (name, runs) == ("layer norm", 1)  # in torch's one kernel for norm, weight and bias
    for got, wanted in zip([alone, *torch.autograd.grad(alone, few, upstream[:runs])], all_wanted, strict=True):
        torch.testing.assert_close(got, wanted[:runs], rtol=1e-5 * fused, atol=1e-5 * fused)


@each
def test_compiles_whole(name) -> None:
    inputs = arguments(name, 2)
    compiled = torch.compile(KERNELS[name].ours, fullgraph=True, dynamic=False)
    for got, wanted in zip(with_gradients(compiled(*inputs), inputs), expected(name, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


def test_hopeless_token_has_a_finite_loss_and_gradient() -> None:
    x = torch.tensor([[[500.0, 0.0]]], requires_grad=True)
    table = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss = head_losses(x, table, torch.tensor([[0]]))
    assert 87 <= loss.item() < 88  # no divergence yet
    loss.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[1.0, 0.0]]]
