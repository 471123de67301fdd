"""A model too large for one device: every rank holds some rows of every parameter (FSDP2), and computes the activations
of each block again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from sweep.checkpoint import Checkpoint, Pieces, Share
from sweep.forward import Parts, Shape, Weights, forward_parts
from sweep.learner import Logits, State
from sweep.model import Shapes, draw_parameters, parameter_shapes
from sweep.optimizer import MOMENTS, matrices_first
from sweep.spec import ModelSpec, OptimizerSpec, PlannedRun
from sweep.world import World

BlockFunction = Callable[[Weights, str, Tensor, Shape], Tensor]


class Sharded:
    """The state of one run in rows over the ranks. Vectors of the state are the parameters one after another, as in
    FlatWeights; what a rank holds of them is some pieces."""

    lone_retry = False  # the others wait inside a collective operation

    def __init__(self, planned: PlannedRun, device: str, world: World) -> None:
        """At step 0."""
        self.spec, self.world = planned.spec, world
        parts = forward_parts(self.spec.model, device)
        trained = (
            torch.compile(parts.block, fullgraph=True, dynamic=False) if planned.execution.compile else parts.block
        )
        self.model: Any = _Model(self.spec.model, parts, trained)  # `fully_shard` adds to its methods
        spread = _spread(self.model, device, world)
        self.parameters = dict(matrices_first((name, spread[name]) for name in parameter_shapes(self.spec.model)))
        for name, drawn in draw_parameters(self.spec.model, self.spec.seed):
            p = self.parameters[name]
            local(p).detach().copy_(drawn[_rows(p, world)])
        self.average = [local(p).detach().clone() for p in self.parameters.values()] if self.spec.weight_average else []
        matrices, vectors = ([p for p in self.parameters.values() if (p.ndim < 2) == small] for small in (False, True))
        self.optimizer = adamw(self.spec.optimizer, matrices, vectors)
        self.loss = torch.zeros((), device=device)
        kind = torch.device(device).type  # a cache would keep every block's weights in bfloat16 for the whole pass
        self.autocast = torch.autocast(kind, torch.bfloat16, enabled=self.spec.precision == "bf16", cache_enabled=False)

    def accumulate(self, tokens: Tensor, targets: Tensor) -> None:
        """As Learner says. A rank without sequences computes on padding, since the others wait for it, and gives it no
        weight."""
        weight = 1 / self.spec.batch_tokens
        if not tokens.shape[1]:
            tokens = targets = tokens.new_zeros(1, 1, self.spec.model.n_ctx)
            weight = 0.0
        with self.autocast:
            loss = self.model(tokens, targets).sum() * weight
        loss.backward()
        self.loss += loss.detach()

    def discard(self) -> None:
        self.model.zero_grad()
        self.loss.zero_()

    @torch.no_grad()
    def update(self, rows: slice, lr: Sequence[float], averaging: Sequence[float]) -> tuple[Tensor, Tensor]:
        [rate], [moved] = lr, averaging
        loss = self.world.sum_(self.loss).clone()  # the gradients have been added up in the backward passes
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        squares = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).square().sum()
        norm = self.world.sum_(squares).sqrt()
        if limit := self.spec.optimizer.grad_clip:
            for g in gradients:
                g.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for mean, p in zip(self.average, self.parameters.values(), strict=False):
            mean.lerp_(local(p), moved)
        self.discard()
        return loss[None], norm[None]

    @contextmanager
    def evaluated(self, rows: Sequence[int]) -> Iterator[Logits]:
        def logits(tokens: Tensor) -> Tensor:
            with self.autocast:
                return self.model(tokens)

        self._exchange()
        try:
            yield logits
        finally:
            self._exchange()

    def gather(self, row: int) -> dict[str, Tensor]:
        weights = {}
        self._exchange()
        for name, p in self.parameters.items():
            whole = p.full_tensor().detach()
            if self.world.rank == 0:
                weights[name] = whole.cpu()
        self._exchange()
        return weights

    def state(self, row: int) -> State:
        vectors = {"weights": join_pieces(self.parameters.values())}
        if self.average:
            vectors["average"] = join_pieces(self.average)
        found, whole = moments(self.optimizer)
        return State(whole, {}, Share(self._pieces(), vectors | found))

    def restore(self, row: int, saved: Checkpoint, numbers: dict[str, Any]) -> None:
        pieces = self._pieces()

        def stored(name: str) -> Tensor:
            return torch.cat([torch.empty(0), *(saved.piece(name, start, stop) for start, stop in pieces)])

        sizes = [local(p).numel() for p in self.parameters.values()]
        for p, values in zip(self.parameters.values(), stored("weights").split(sizes), strict=True):
            local(p).detach().copy_(values.view(local(p).shape))
        if self.average:
            for mean, values in zip(self.average, stored("average").split(sizes), strict=True):
                mean.copy_(values.view(mean.shape))
        if "optimizer.step" in saved:
            vectors = {f"optimizer.{name}": stored(f"optimizer.{name}") for name in MOMENTS}
            restore_moments(self.optimizer, vectors, saved.tensor("optimizer.step"))
        self.model.reshard()

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == [0], rows

    def _pieces(self) -> Pieces:
        """Where this rank's rows lie in the vectors."""
        pieces, offset = [], 0
        for p in self.parameters.values():
            rows = _rows(p, self.world)
            width = p.numel() // p.shape[0]
            if rows.start < rows.stop:
                pieces.append((offset + rows.start * width, offset + rows.stop * width))
            offset += p.numel()
        return pieces

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange weights and average, where one is kept, one parameter at a time."""
        for mean, p in zip(self.average, self.parameters.values(), strict=False):
            last = local(p).clone()
            local(p).copy_(mean)
            mean.copy_(last)
        self.model.reshard()  # drop what a forward pass without a backward one has left together


class _Part(nn.Module):
    """Parameters by transformers' names, which torch does not allow to hold dots."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.names = {name: name.replace(".", "/") for name in shapes}
        for name, shape in shapes.items():
            self.register_parameter(self.names[name], nn.Parameter(torch.empty(shape, device="meta")))

    def weights(self) -> dict[str, Tensor]:
        """With the run axis that the forward pass wants, of one run."""
        return {name: getattr(self, held)[None] for name, held in self.names.items()}


class _Block(_Part):
    def __init__(self, shapes: Shapes, block: BlockFunction) -> None:
        super().__init__(shapes)
        self.block = block

    def forward(self, x: Tensor, shape: Shape) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(self._compute, x, shape, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x, shape)

    def _compute(self, x: Tensor, shape: Shape) -> Tensor:
        return self.block(self.weights(), "", x, shape)


class _Model(_Part):
    """The forward pass on modules: embedding and head in this one, each block in one of its own."""

    def __init__(self, spec: ModelSpec, parts: Parts, trained: BlockFunction) -> None:
        shapes = parameter_shapes(spec)
        prefixes = [f"{parts.blocks}{i}." for i in range(spec.n_layer)]
        super().__init__({name: shape for name, shape in shapes.items() if not name.startswith(parts.blocks)})
        self.parts, self.prefixes = parts, prefixes
        self.blocks = nn.ModuleList(
            _Block({n.removeprefix(at): s for n, s in shapes.items() if n.startswith(at)}, parts.block)
            for at in prefixes
        )

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Summed losses [1] at `targets`; without them logits [1, sequences * n, vocab_size]."""
        runs, sequences, n = tokens.shape
        x = self.parts.embed(self.weights(), tokens)
        for block in self.blocks:
            x = block(x, (runs, sequences, n))
        if targets is None:
            return self.parts.head(self.weights(), x)
        return self.parts.losses(self.weights(), x, targets.flatten(1))


def _spread(model: _Model, device: str, world: World) -> dict[str, DTensor]:
    """Spread the parameters' rows over the ranks, block by block, with gradients that are sums over ranks. Returns them
    by transformers' names, not initialised."""
    mesh = init_device_mesh(torch.device(device).type, (world.size,))
    found: dict[str, Any] = {}
    parts: dict[str, Any] = {"": model, **dict(zip(model.prefixes, model.blocks, strict=True))}
    for part in reversed(parts.values()):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=device)
    for at, part in parts.items():
        found |= {at + name: getattr(part, held) for name, held in part.names.items()}
    return found


def _rows(parameter: DTensor, world: World) -> slice:
    """The rows of `parameter` that this rank holds: as torch.chunk deals them out."""
    count = parameter.shape[0]
    each = -(-count // world.size)
    return slice(min(world.rank * each, count), min((world.rank + 1) * each, count))


def adamw(spec: OptimizerSpec, matrices: Sequence[Tensor], vectors: Sequence[Tensor]) -> torch.optim.AdamW:
    """AdamW (fused) that decays the `matrices` only."""
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def local(tensor: Tensor) -> Tensor:
    """The rows of `tensor` that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join_pieces(tensors: Iterable[Tensor]) -> Tensor:
    """What this rank holds of `tensors`, as one vector on the CPU."""
    return torch.cat([local(tensor).detach().reshape(-1).cpu() for tensor in tensors])


def moments(optimizer: torch.optim.AdamW) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """AdamW's two moments, each as a vector of what this rank holds of it, and its count of steps. Empty before the
    first step."""
    states = [optimizer.state[p] for p in _parameters(optimizer) if p in optimizer.state]
    if not states:
        return {}, {}
    vectors = {f"optimizer.{name}": join_pieces(state[name] for state in states) for name in MOMENTS}
    return vectors, {"optimizer.step": states[0]["step"].cpu()}


@torch.no_grad()
def restore_moments(optimizer: torch.optim.AdamW, vectors: Mapping[str, Tensor], step: Tensor) -> None:
    """Inverse of `moments`."""
    parameters = _parameters(optimizer)
    sizes = [local(p).numel() for p in parameters]
    for p in parameters:
        optimizer.state[p] = {"step": step.to(local(p).device, copy=True)}
    for name in MOMENTS:
        for p, piece in zip(parameters, vectors[f"optimizer.{name}"].split(sizes), strict=True):
            moment = torch.zeros_like(p)
            local(moment).copy_(piece.view(local(p).shape))
            optimizer.state[p][name] = moment


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
