"""The training sequences of several runs at once, on the device that computes.

On a GPU the token file is kept in device memory where it fits: then only the numbers of windows travel. Where it does
not fit, a thread prepares the next block in page-locked memory while the device works at this one. On a CPU a block is
gathered from the memory-mapped file when asked for: 0.05 to 0.3 us a sequence, against 100 us and more to train it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from sweep.batches import Order, windows
from sweep.corpus import Corpus

RESIDENT_SHARE = 0.2  # of the free memory of a device, that a token file may take
COPY = 2**26  # tokens copied to the device at once

Request = tuple[tuple[tuple[int, int], ...], int]  # ((seed, first sample) of each run, samples)


class Feed:
    """Sequences of one corpus at one context length. The stacks of a process share it, one after the other."""

    def __init__(self, corpus: Corpus, n_ctx: int, device: str, resident_share: float = RESIDENT_SHARE) -> None:
        """Copies the token file to a CUDA device if it takes at most `resident_share` of its free memory. Raises
        InputError where the training split is shorter than a sequence."""
        self.corpus, self.n_ctx, self.device = corpus, n_ctx, device
        self._orders: dict[int, Order] = {}
        tokens = np.asarray(corpus.train)
        self.per_epoch = len(windows(tokens, n_ctx))  # sequences in one pass
        self._source: Callable[[Request], Tensor]
        if torch.device(device).type == "cpu":
            self._source = Mapped(tokens, n_ctx, self._index)
        elif tokens.nbytes <= resident_share * torch.cuda.mem_get_info(device)[0]:
            self._source = Resident(tokens, n_ctx, self._index, device)
        else:
            self._source = Streamed(tokens, n_ctx, self._index, device)

    def block(self, wanted: Sequence[tuple[int, int]], count: int) -> Tensor:
        """Of each run (seed, first sample): its samples first ... first + count - 1, as `batches.Sequences` orders
        them. int64 [runs, count, n_ctx + 1] on the device: inputs are [..., :-1], targets [..., 1:]."""
        return self._source((tuple(wanted), count))

    def epochs(self, samples: int) -> float:
        """Passes over the data after `samples` sequences."""
        return samples / self.per_epoch

    def _index(self, request: Request) -> np.ndarray:
        """Numbers of the windows, int64 [runs, count]. Runs of one seed share its permutation."""
        wanted, count = request
        rows = {}
        for seed, first in sorted(set(wanted)):
            order = self._orders.setdefault(seed, Order(seed, self.per_epoch))
            rows[seed, first] = order.windows(first, count)
        return np.stack([rows[key] for key in wanted]).astype(np.int64)


Index = Callable[[Request], np.ndarray]


class Mapped:
    """Gathers from an array in memory or in a mapped file, on the CPU."""

    def __init__(self, tokens: np.ndarray, n_ctx: int, index: Index) -> None:
        self._windows, self._index = windows(tokens, n_ctx), index

    def __call__(self, request: Request) -> Tensor:
        return torch.from_numpy(self._windows[self._index(request)].astype(np.int64))


class Resident:
    """Gathers from a copy of the tokens on the device. Nothing waits for the device."""

    def __init__(self, tokens: np.ndarray, n_ctx: int, index: Index, device: str) -> None:
        signed, self._mask = _signed(tokens)
        copy = torch.empty(len(tokens), dtype=torch.from_numpy(signed[:0].copy()).dtype, device=device)
        for start in range(0, len(tokens), COPY):  # never the whole file in the host's memory
            copy[start : start + COPY] = torch.from_numpy(signed[start : start + COPY].copy())
        self._windows = copy.as_strided(windows(tokens, n_ctx).shape, (n_ctx, 1))
        self._index, self._device = index, device

    def __call__(self, request: Request) -> Tensor:
        index = _pinned(torch.from_numpy(self._index(request)), self._device)
        found = self._windows[index.to(self._device, non_blocking=True)].long()
        return found if self._mask is None else found & self._mask


class Streamed:
    """Gathers on the host, in a thread that works ahead: it expects every run to go on where it stands."""

    def __init__(self, tokens: np.ndarray, n_ctx: int, index: Index, device: str) -> None:
        signed, self._mask = _signed(tokens)
        self._windows, self._index, self._device = windows(signed, n_ctx), index, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[Request, Future[Tensor]] | None = None

    def __call__(self, request: Request) -> Tensor:
        wanted, count = request
        if self._ahead and self._ahead[0][0] == wanted and self._ahead[0][1] >= count:
            host = self._ahead[1].result()[:, :count]
        else:
            host = self._thread.submit(self._gather, request).result()
        following = tuple((seed, first + count) for seed, first in wanted), count
        self._ahead = following, self._thread.submit(self._gather, following)
        found = host.to(self._device, non_blocking=True).long()
        return found if self._mask is None else found & self._mask

    def _gather(self, request: Request) -> Tensor:
        return _pinned(torch.from_numpy(self._windows[self._index(request)]), self._device)


def feed_for(corpus: Corpus, n_ctx: int, device: str) -> Feed:
    """A feed, the same one as in the last call where that asked for the same: training one group after another copies
    the token file to the device once."""
    global _last
    if _last is None or not _same(_last.corpus, corpus) or (_last.n_ctx, _last.device) != (n_ctx, device):
        _last = None  # its memory is free for the next one
        _last = Feed(corpus, n_ctx, device)
    return _last


_last: Feed | None = None


def _same(one: Corpus, other: Corpus) -> bool:
    """Whether both hold the same tokens: one array, or files of one path and hash."""
    files = isinstance(one.train, np.memmap) and isinstance(other.train, np.memmap)
    return one.train is other.train or (files and (one.path, one.data_hash) == (other.path, other.data_hash))


def _signed(tokens: np.ndarray) -> tuple[np.ndarray, int | None]:
    """`tokens` as a dtype that torch can gather, and the bits to keep of each once it is int64 (None: all)."""
    if tokens.dtype in (np.uint16, np.uint32):
        return tokens.view(f"i{tokens.itemsize}"), 2 ** (8 * tokens.itemsize) - 1
    return tokens, None


def _pinned(tensor: Tensor, device: str) -> Tensor:
    """`tensor` in page-locked memory, from which a copy to a CUDA `device` does not wait. torch keeps the memory until
    the copy is done, whatever becomes of the tensor."""
    if torch.device(device).type != "cuda":
        return tensor
    with torch.cuda.device(device):  # a thread starts on the first device
        return tensor.pin_memory()
