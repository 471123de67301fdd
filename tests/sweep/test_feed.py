"""The feed gives the samples that `batches.Sequences` orders, wherever the tokens lie."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sweep.batches import Sequences
from sweep.corpus import Corpus, prepare
from sweep.feed import Feed, Mapped, Resident, Streamed, feed_for
from sweep.schema import InputError
from sweep.spec import DataSpec, Source

N_CTX = 8
KINDS = {np.uint8: 256, np.uint16: 60_000, np.uint32: 200_000, np.int64: 100}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def corpus_of(kind: type = np.uint8, tokens: int = 1001) -> Corpus:
    train = np.random.default_rng(0).integers(0, KINDS[kind], tokens).astype(kind)
    return Corpus(Path(), train, train[:100], "hash", KINDS[kind], 1.0, {})


def expected(corpus: Corpus, wanted: list[tuple[int, int]], count: int) -> np.ndarray:
    return np.stack([Sequences(corpus.train, N_CTX, seed).samples(first, count) for seed, first in wanted])


REQUESTS = [
    ([(0, 0)], 1),
    ([(0, 0), (1, 0), (0, 0)], 16),
    ([(0, 16), (1, 16), (0, 16)], 16),  # goes on
    ([(0, 32), (1, 32), (0, 32)], 5),  # goes on, for less
    ([(0, 37), (0, 37)], 5),  # a run has left
    ([(3, 120), (4, 120), (3, 120)], 10),  # over the end of an epoch of 125
    ([(3, 130), (4, 130), (3, 130)], 300),  # several epochs
    ([(3, 7)], 1),  # back
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [Mapped, Resident, Streamed])
def test_every_source_gives_the_same_samples(source: type, kind: type) -> None:
    corpus = corpus_of(kind)
    feed = Feed(corpus, N_CTX, "cpu")
    if source is not Mapped:
        feed._source = source(corpus.train, N_CTX, feed._index, "cpu")
    for wanted, count in REQUESTS:
        found = feed.block(wanted, count)
        assert found.dtype == torch.int64
        assert np.array_equal(found.numpy(), expected(corpus, wanted, count))
    assert feed.per_epoch == 125
    assert feed.epochs(250) == 2.0


def test_the_next_block_is_prepared_by_a_thread_before_it_is_asked_for() -> None:
    corpus = corpus_of()
    feed = Feed(corpus, N_CTX, "cpu")
    gathered: list[tuple[object, str]] = []
    ready = threading.Event()

    def index(request: tuple) -> np.ndarray:
        gathered.append((request, threading.current_thread().name))
        if len(gathered) == 2:
            ready.set()
        return feed._index(request)

    source = Streamed(corpus.train, N_CTX, index, "cpu")
    source((((0, 0),), 4))
    assert ready.wait(10)
    assert [request for request, _ in gathered] == [(((0, 0),), 4), (((0, 4),), 4)]
    assert np.array_equal(source((((0, 4),), 3)).numpy(), expected(corpus, [(0, 4)], 3))
    source._thread.shutdown()
    assert [request for request, _ in gathered[2:]] == [(((0, 7),), 3)]  # nothing was gathered twice
    assert all(name.startswith("feed") for _, name in gathered)


def test_runs_of_one_seed_share_its_permutation() -> None:
    feed = Feed(corpus_of(), N_CTX, "cpu")
    feed.block([(0, 120), (0, 120), (1, 120)], 10)
    orders = dict(feed._orders)
    permutation = orders[0]._of_epoch(1)
    feed.block([(0, 130), (0, 140)], 10)
    assert set(feed._orders) == {0, 1}
    assert feed._orders[0]._of_epoch(1) is permutation


def test_a_process_keeps_the_feed_of_a_corpus(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i}.txt").write_text(f"text number {i} " * 20)
    data = DataSpec("text", "numbers", "bytes", 256, test_fraction=0.2, test_tokens=64)
    source = Source(files=(str(texts / "*.txt"),), cache_dir=str(tmp_path / "cache"))
    one, again = prepare(data, source), prepare(data, source)
    feed = feed_for(one, N_CTX, "cpu")
    assert feed_for(again, N_CTX, "cpu") is feed  # opened anew, the same files
    assert feed_for(one, 2 * N_CTX, "cpu") is not feed
    arrays = corpus_of(), corpus_of()
    held = feed_for(arrays[0], N_CTX, "cpu")
    assert feed_for(arrays[0], N_CTX, "cpu") is held
    assert feed_for(arrays[1], N_CTX, "cpu") is not held  # equal hashes of made-up corpora say nothing


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(InputError, match="less than one sequence"):
        Feed(corpus_of(tokens=8), N_CTX, "cpu")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "source"), [(0.2, Resident), (0.0, Streamed)])
def test_cuda_feeds_give_the_same_samples_and_never_wait(kind: type, share: float, source: type) -> None:
    corpus = corpus_of(kind)
    feed = Feed(corpus, N_CTX, "cuda", resident_share=share)
    assert isinstance(feed._source, source)
    feed.block([(0, 0)], 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [feed.block(wanted, count) for wanted, count in REQUESTS]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (wanted, count), block in zip(REQUESTS, found, strict=True):
        assert block.device.type == "cuda"
        assert np.array_equal(block.cpu().numpy(), expected(corpus, wanted, count))
