"""CUDA graphs: the kernels of a computation recorded once and launched together from then on.

A pass of a small model is some hundred kernels that each take a GPU less time than the host takes to launch it. A
recorded pass is one launch. What is recorded are addresses: inputs are copied to fixed places, and results must go to
tensors that stay where they are (`FlatWeights` and its gradients do).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from sweep.accounting import count_flops
from sweep.spec import ModelSpec

WARM_UP = 3  # calls before the recording, in which libraries choose kernels, take work space and compile
# Arithmetic of a layer, in FLOPs, that takes an H100 as long as the host needs to launch its kernels one by one:
# 1.5 ms at 0.3 of the peak. Assumed, as in sweep.estimate; not yet measured.
LAUNCH_FLOPS = 4.5e11

Work = Callable[[], None]
Recorder = Callable[[Work], Work]  # records what a function does, without doing it; the result does it again


def launch_bound(model: ModelSpec, tokens: int) -> bool:
    """Whether a forward and backward pass over `tokens` tokens, of all runs of a stack together, takes a GPU less time
    than its launches take the host, so that recording it pays. Larger ones gain from torch.compile instead, and their
    recording would hold their activations' memory for good."""
    return count_flops(model).total * tokens < LAUNCH_FLOPS * model.n_layer


class _Recorded(NamedTuple):
    places: list[Tensor]  # of the inputs
    again: Work


class Graphed:
    """A function of tensors and hashable values, whose only effect is on tensors that stay where they are.

    On a CUDA device each combination of shapes and values is computed call by call WARM_UP times, on a stream of its
    own, then recorded and replayed. What cannot be recorded goes on being computed call by call. On other devices the
    function is simply called. All recordings share one memory pool, as nothing in it outlives a call.
    """

    def __init__(
        self,
        function: Callable[..., None],
        device: str,
        note: Callable[[str], None],
        recorder: Recorder | None = None,
    ) -> None:
        """`note` is told in one line why nothing could be recorded. `recorder` is for tests; the default is the
        device's own."""
        self._function, self._device, self._note = function, torch.device(device), note
        # A stream of its own: a graph that goes takes the work space of its stream along, also from under others
        # (torch 2.12 and 2.13).
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._recorder = recorder or (self._cuda_recorder() if self._stream else None)
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}

    def __call__(self, *inputs: Tensor | Hashable) -> None:
        if self._recorder is None:
            return self._function(*inputs)
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)
        if key not in self._recorded:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP or not self._record(key, inputs):
                return self._by_calls(inputs)
        places, again = self._recorded[key]
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        again()

    def forget(self) -> None:
        """Drop all recordings: to be called where the tensors that the function changes or reads have moved."""
        self._seen, self._recorded = {}, {}
        if self._recorder and self._stream:
            self._recorder = self._cuda_recorder()  # an emptied memory pool cannot be used again

    def _record(self, key: Hashable, inputs: tuple[Tensor | Hashable, ...]) -> bool:
        """Record the function; False, and no further attempt, where that fails."""
        assert self._recorder
        fixed = [torch.empty_like(x).copy_(x) if isinstance(x, Tensor) else x for x in inputs]
        try:
            again = self._recorder(lambda: self._function(*fixed))
        except RuntimeError as error:  # torch's errors of the device, lack of memory among them
            self.forget()
            self._recorder = None
            cause = str(error.__context__ or error).partition("\n")[0]  # ending a failed capture fails as well
            self._note(f"no CUDA graph ({cause}); passes are launched kernel by kernel")
            return False
        self._recorded[key] = _Recorded([x for x in fixed if isinstance(x, Tensor)], again)
        return True

    def _by_calls(self, inputs: tuple[Tensor | Hashable, ...]) -> None:
        if self._stream is None:
            return self._function(*inputs)
        # Libraries keep work space for each stream, and a recording must find what it needs there.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._function(*inputs)
        current.wait_stream(self._stream)

    def _cuda_recorder(self) -> Recorder:
        with torch.cuda.device(self._device):
            pool = torch.cuda.graph_pool_handle()
        stream = self._stream

        def record(work: Work) -> Work:
            graph = torch.cuda.CUDAGraph()
            # The outer context puts the stream back, which a failed capture does not. Other threads (a feed's) may
            # allocate meanwhile.
            with torch.cuda.stream(stream), torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                work()
            return graph.replay

        return record
