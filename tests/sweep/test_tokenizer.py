"""Tokens: bytes as they are, byte-pair encodings from the training split only."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from sweep.schema import InputError
from sweep.tokenizer import SEPARATOR, BpeTokenizer, ByteTokenizer, train_bpe

TEXTS = [f"def function_{i}(argument):\n    return argument + {i}\n\n".encode() for i in range(300)]
ODD = ["caf\u00e9 \U0001f600\n", "a\tb  c", "<|endoftext|> is text", " lead", "x" * 100_000]


def test_bytes_are_their_own_tokens():
    tokens = ByteTokenizer().encode([b"ab\n", b"", "\u00e9".encode()])
    assert [t.tolist() for t in tokens] == [[97, 98, 10, 0], [0], [0xC3, 0xA9, 0]]
    assert tokens[0].dtype == np.uint8


def test_bpe_round_trip_and_separator(tmp_path):
    trained = train_bpe(TEXTS, 400)
    assert trained.vocab_size == 400
    trained.save(tmp_path / "tokenizer.json")
    loaded = BpeTokenizer.load(tmp_path / "tokenizer.json")
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*TEXTS[:5], *(text.encode() for text in ODD)]
    for text, tokens, again in zip(texts, loaded.encode(texts), trained.encode(texts), strict=True):
        assert tokens.tolist() == again.tolist()
        assert tokens[-1] == SEPARATOR
        assert SEPARATOR not in tokens[:-1]  # even where the text spells the separator's name
        assert plain.decode(tokens[:-1].tolist(), skip_special_tokens=False).encode() == text
    assert max(map(len, loaded.encode(TEXTS))) < min(map(len, TEXTS)) / 2


def test_bpe_is_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        train_bpe(iter(TEXTS), 500).save(tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_bpe_from_little_text_uses_fewer_tokens():
    trained = train_bpe([b"abc"], 1000)
    assert 257 <= trained.vocab_size < 300
    assert max(trained.encode([bytes(range(1, 128))])[0]) < trained.vocab_size


def test_bpe_needs_room_for_the_bytes():
    with pytest.raises(InputError, match="at least 257"):
        train_bpe(TEXTS, 256)
