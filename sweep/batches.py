"""Sequences of a token file by global sample number, and the fixed test set.

Sample k is the k-th entry of one permutation of the file's windows, whatever the batch size, micro-batch or world size:
a run at batch b reads samples k*b ... (k+1)*b - 1 at step k, so all runs of one seed read a prefix of one sequence.
"""

from __future__ import annotations

import numpy as np

from sweep.corpus import Corpus
from sweep.schema import InputError
from sweep.spec import RunSpec, Source


class Order:
    """Which window of the token file each sample of a seed is: a permutation of the windows for every epoch."""

    def __init__(self, seed: int, per_epoch: int) -> None:
        self._seed, self._per_epoch = seed, per_epoch
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.uint32)

    def windows(self, start: int, count: int) -> np.ndarray:
        """Indices of the windows that samples start ... start + count - 1 are, unsigned [count]."""
        parts = []
        while count:
            epoch, first = divmod(start, self._per_epoch)
            parts.append(self._of_epoch(epoch)[first : first + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else self._permutation[:0]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        # Sorting raw bits rather than Generator.permutation: numpy guarantees the bit stream for all versions, but not
        # the permutation drawn from it, and a run must read the same data on every machine.
        if epoch != self._epoch:
            bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch])).random_raw(self._per_epoch)
            kind = np.uint32 if self._per_epoch < 2**32 else np.uint64
            self._permutation, self._epoch = np.argsort(bits, kind="stable").astype(kind), epoch
        return self._permutation


class Sequences:
    """The windows of a token array in permuted order. Window i is tokens[i*n_ctx : (i+1)*n_ctx + 1]: inputs and targets
    of n_ctx positions, so that every token but the first is a target exactly once an epoch."""

    def __init__(self, tokens: np.ndarray, n_ctx: int, seed: int) -> None:
        """`tokens` [T] of any integer dtype, memory-mapped or not. Raises InputError where T < n_ctx + 1."""
        self._windows = windows(tokens, n_ctx)
        self._n_ctx = n_ctx
        self._order = Order(seed, self.per_epoch)

    @property
    def per_epoch(self) -> int:
        """Sequences in one pass."""
        return len(self._windows)

    @property
    def unique_tokens(self) -> int:
        """Target tokens in one pass."""
        return self.per_epoch * self._n_ctx

    def samples(self, start: int, count: int) -> np.ndarray:
        """Samples start ... start + count - 1 as int64 [count, n_ctx + 1]: inputs are [:, :-1], targets [:, 1:]."""
        return self._windows[self._order.windows(start, count)].astype(np.int64)


def test_sequences(tokens: np.ndarray, n_ctx: int, test_tokens: int) -> np.ndarray:
    """The test set, int64 [test_tokens // n_ctx, n_ctx + 1]: windows at equal distances over the whole of `tokens` [T],
    in file order, so that it samples many documents and is the same for every run. Raises InputError where `tokens` is
    too short or `test_tokens` is less than one sequence."""
    count = test_tokens // n_ctx
    if count < 1:
        raise InputError(f"data.test_tokens {test_tokens} is less than one sequence of model.n_ctx {n_ctx}; raise it")
    views = windows(tokens, n_ctx)
    if count > len(views):
        raise InputError(
            f"data.test_tokens {test_tokens} exceeds the {len(views) * n_ctx} tokens of the test split in whole "
            f"sequences of {n_ctx}; lower data.test_tokens, raise data.test_fraction or give more text"
        )
    return views[(2 * np.arange(count) + 1) * len(views) // (2 * count)].astype(np.int64)


test_sequences.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test where it is imported


def check_epochs(spec: RunSpec, source: Source, corpus: Corpus) -> None:
    """Raise InputError where the run asks for more passes over the training split than `source.max_epochs`, or where
    the test split cannot hold its test set."""
    n_ctx = spec.model.n_ctx
    unique = Sequences(corpus.train, n_ctx, seed=0).unique_tokens
    if spec.tokens > source.max_epochs * unique:
        raise InputError(
            f"data {spec.data.name}: {spec.tokens} tokens are {spec.tokens / unique:.3g} passes over the {unique} of "
            f"the training split, more than data.max_epochs {source.max_epochs:g}; shorten the horizon, give more "
            "text, or raise data.max_epochs"
        )
    test_sequences(corpus.test, n_ctx, spec.data.test_tokens)


def windows(tokens: np.ndarray, n_ctx: int) -> np.ndarray:
    """View [windows, n_ctx + 1] of `tokens` [T], neighbours sharing one token."""
    if len(tokens) < n_ctx + 1:
        raise InputError(
            f"data: {len(tokens)} tokens are less than one sequence of model.n_ctx {n_ctx} + 1; give more text or "
            "lower model.n_ctx"
        )
    return np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n_ctx + 1)[::n_ctx]
