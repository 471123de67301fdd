"""A model too large for one device: every rank holds some rows of every parameter (FSDP2), and computes the activations
of each block again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from sweep.checkpoint import Checkpoint, Pieces, Share
from sweep.forward import Parts, forward_parts, summed_loss
from sweep.learner import Logits, State
from sweep.model import Shapes, draw_parameters, parameter_shapes
from sweep.optimizer import MOMENTS, adamw, join_pieces, local, matrices_first, moments, restore_moments
from sweep.spec import ModelSpec, PlannedRun
from sweep.world import World

BlockFunction = Callable[[Mapping[str, Tensor], str, Tensor, torch.Size], Tensor]


class Sharded:
    """The state in rows over the ranks. Vectors of the state are the parameters one after another, as in FlatWeights;
    what a rank holds of them is some pieces."""

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

    def accumulate(self, tokens: Tensor, targets: Tensor, micro_batch: int) -> None:
        """As Learner says. All ranks make equally many passes; one without sequences left computes on padding, and
        gives it no weight."""
        self.model.zero_grad()
        self.loss.zero_()
        largest = -(-self.spec.batch_sequences // self.world.size)
        for start in range(0, largest, micro_batch):
            x, y = tokens[start : start + micro_batch], targets[start : start + micro_batch]
            weight = 1 / self.spec.batch_tokens
            if not len(x):
                x = y = tokens.new_zeros(micro_batch, self.spec.model.n_ctx)
                weight = 0.0
            with self.autocast:
                loss = summed_loss(self.model(x), y.reshape(-1)) * weight
            loss.backward()
            self.loss += loss.detach()

    def reduce(self) -> Tensor:
        return self.world.sum_(self.loss).clone()  # the gradients have been added up in the backward passes

    @torch.no_grad()
    def update(self, lr: float, averaging: float | None) -> Tensor:
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        squares = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).square().sum()
        norm = self.world.sum_(squares).sqrt()
        if limit := self.spec.optimizer.grad_clip:
            for g in gradients:
                g.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if averaging is not None:
            for mean, p in zip(self.average, self.parameters.values(), strict=True):
                mean.lerp_(local(p), averaging)
        return norm

    @contextmanager
    def evaluated(self) -> Iterator[Logits]:
        def logits(tokens: Tensor) -> Tensor:
            with self.autocast:
                return self.model(tokens)

        self._exchange()
        try:
            yield logits
        finally:
            self._exchange()

    def gather(self) -> dict[str, Tensor]:
        weights = {}
        self._exchange()
        for name, p in self.parameters.items():
            whole = p.full_tensor().detach()
            if self.world.rank == 0:
                weights[name] = whole.cpu()
        self._exchange()
        return weights

    def state(self) -> State:
        vectors = {"weights": join_pieces(self.parameters.values())}
        if self.average:
            vectors["average"] = join_pieces(self.average)
        found, whole = moments(self.optimizer)
        return State(whole, {}, Share(self._pieces(), vectors | found))

    def restore(self, saved: Checkpoint, numbers: dict[str, Any]) -> None:
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
        return {name: getattr(self, held) for name, held in self.names.items()}


class _Block(_Part):
    def __init__(
        self, shapes: Shapes, block: Callable[[Mapping[str, Tensor], str, Tensor, torch.Size], Tensor]
    ) -> None:
        super().__init__(shapes)
        self.block = block

    def forward(self, x: Tensor, shape: torch.Size) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(self._compute, x, shape, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x, shape)

    def _compute(self, x: Tensor, shape: torch.Size) -> Tensor:
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

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.parts.embed(self.weights(), tokens)
        for block in self.blocks:
            x = block(x, tokens.shape)
        return self.parts.head(self.weights(), x)


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
        found |= {at + name: p for name, p in part.weights().items()}
    return found


def _rows(parameter: DTensor, world: World) -> slice:
    """The rows of `parameter` that this rank holds: as torch.chunk deals them out."""
    count = parameter.shape[0]
    each = -(-count // world.size)
    return slice(min(world.rank * each, count), min((world.rank + 1) * each, count))
