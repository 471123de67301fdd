"""Text to token numbers: bytes, or a byte-pair encoding trained on the training split.

Token 0 ends every document in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sweep.schema import InputError

SEPARATOR = 0
END_OF_TEXT = "<|endoftext|>"  # the separator's name in a byte-pair encoding
TRAINING_BYTES = 128 * 2**20  # of the training split: a bound on time and memory


class Tokenizer(Protocol):
    """Turns documents into numbers below `vocab_size`."""

    vocab_size: int  # numbers in use

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Token numbers of each text (UTF-8 without NUL), each ended by the separator."""


class ByteTokenizer:
    """A token is a byte; NUL, which no text holds, separates documents."""

    vocab_size = 256

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """uint8 [len(text) + 1] of each text."""
        return [np.frombuffer(text + b"\0", dtype=np.uint8) for text in texts]


class BpeTokenizer:
    """A byte-level byte-pair encoding of the `tokenizers` library (GPT-2's pre-tokeniser, no prefix space)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # a text that spells the separator's name is still text
        self.vocab_size: int = tokenizer.get_vocab_size()

    @classmethod
    def load(cls, path: Path) -> BpeTokenizer:
        """Read a tokenizer.json."""
        import tokenizers

        return cls(tokenizers.Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write tokenizer.json, which transformers' PreTrainedTokenizerFast reads too."""
        self._tokenizer.save(str(path))

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """uint32 [tokens + 1] of each text."""
        encodings = self._tokenizer.encode_batch([text.decode() for text in texts], add_special_tokens=False)
        return [np.array([*encoding.ids, SEPARATOR], dtype=np.uint32) for encoding in encodings]


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> BpeTokenizer:
    """Train on the first `TRAINING_BYTES` of `texts`. The result has fewer than `vocab_size` tokens where the text does
    not hold that many pairs. Raises InputError below 257, the bytes and the separator."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise InputError(f"data.vocab_size {vocab_size} is too small for data.tokenizer=bpe; use at least 257")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_decoded(texts), trainer)
    return BpeTokenizer(tokenizer)


def _decoded(texts: Iterable[bytes]) -> Iterable[str]:
    total = 0
    for text in texts:
        if total >= TRAINING_BYTES:
            return
        total += len(text)
        yield text.decode()
