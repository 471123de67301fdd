"""The order of the data: one permutation, whatever the batch; and the fixed test set."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.batches import Sequences, check_epochs, test_sequences
from sweep.corpus import Corpus
from sweep.schema import InputError
from sweep.spec import DataSpec, ModelSpec, OptimizerSpec, RunSpec, ScheduleSpec, Source

TOKENS = (np.arange(1001) % 251).astype(np.uint8)


def test_an_epoch_has_every_window_once():
    sequences = Sequences(np.arange(1001, dtype=np.uint16), n_ctx=8, seed=3)
    assert (sequences.per_epoch, sequences.unique_tokens) == (125, 1000)
    for epoch in range(3):
        found = sequences.samples(125 * epoch, 125)
        assert found.shape == (125, 9)
        assert found.dtype == np.int64
        assert np.array_equal(np.sort(found[:, 0]), np.arange(0, 1000, 8))
        assert np.array_equal(found - found[:, :1], np.tile(np.arange(9), (125, 1)))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_the_sequence_is_the_same_for_every_batch_size(batches):
    one = Sequences(TOKENS, 8, seed=1)
    starts = np.cumsum([0, *batches])
    parts = [one.samples(int(start), count) for start, count in zip(starts, batches, strict=False)]
    assert np.array_equal(np.concatenate(parts), Sequences(TOKENS, 8, seed=1).samples(0, int(starts[-1])))


def test_seeds_and_epochs_have_orders_of_their_own():
    a, b = (Sequences(np.arange(1001), 8, seed) for seed in (0, 1))
    assert not np.array_equal(a.samples(0, 125), b.samples(0, 125))
    assert not np.array_equal(a.samples(0, 125), a.samples(125, 125))
    firsts = a.samples(0, 125)[:, 0] // 8
    assert abs(np.corrcoef(firsts, np.arange(125))[0, 1]) < 0.3


def test_the_order_never_changes_between_machines_and_versions():
    found = Sequences(np.arange(101), 10, seed=7).samples(0, 20)[:, 0] // 10
    assert found.tolist() == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1, 1, 3, 2, 7, 8, 4, 5, 9, 0, 6]


def test_test_sequences_are_spread_over_the_split():
    tokens = np.arange(100_001)
    found = test_sequences(tokens, 10, 1000)
    assert found.shape == (100, 11)
    assert np.array_equal(np.diff(found[:, 0]), np.full(99, 1000))
    assert found[0, 0] == 500
    assert np.array_equal(test_sequences(tokens, 10, 100_000)[:, 0], np.arange(0, 100_000, 10))  # all there are
    uneven = test_sequences(tokens[:998], 10, 300)[:, 0]
    assert len(set(uneven)) == 30
    assert uneven[-1] > 900


def test_too_little_text_is_refused():
    with pytest.raises(InputError, match=r"8 tokens are less than one sequence of model\.n_ctx 8"):
        Sequences(TOKENS[:8], 8, 0)
    assert Sequences(TOKENS[:9], 8, 0).samples(0, 3).shape == (3, 9)
    with pytest.raises(InputError, match="exceeds the 1000 tokens of the test split"):
        test_sequences(TOKENS, 8, 1008)
    with pytest.raises(InputError, match="less than one sequence"):
        test_sequences(TOKENS, 8, 7)


@pytest.mark.parametrize(
    ("steps", "max_epochs", "test_tokens", "message"),
    [
        (31, 1.0, 64, None),
        (32, 1.0, 64, "1024 tokens are 1.02 passes over the 1000"),
        (32, 1.1, 64, None),
        (63, 2.0, 64, "max_epochs 2;"),
        (31, 1.0, 4096, "data.test_tokens 4096 exceeds"),
    ],
)
def test_more_passes_than_allowed_are_refused(steps, max_epochs, test_tokens, message):
    spec = RunSpec(
        model=ModelSpec("gpt2", 1, 8, 1, 8, 32, 8, 256),
        data=DataSpec("text", "t", "bytes", 256, 0.1, test_tokens),
        batch_tokens=32,
        steps=steps,
        optimizer=OptimizerSpec("adamw", 1e-3, 0.9, 0.95, 1e-8, 0.0, 1.0),
        schedule=ScheduleSpec("constant", 0, steps),
    )
    corpus = Corpus(Path(), TOKENS, TOKENS[:501], "hash", 256, 1.0, {})
    source = Source(max_epochs=max_epochs)
    if message is None:
        check_epochs(spec, source, corpus)
    else:
        with pytest.raises(InputError, match=message):
            check_epochs(spec, source, corpus)
