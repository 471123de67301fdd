"""Documents to token files, once: duplicates dropped, split by hash, tokenised, resumable at any moment.

A build lives in a folder of its own until it is whole. It holds train.bin and test.bin (tokens), seen.bin (the hashes
of the documents taken), tokenizer.json and state.json, which says how much of each file is valid and where to go on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sweep.documents import Documents, Split, clean, digest, open_documents
from sweep.schema import InputError
from sweep.spec import DataSpec, Source
from sweep.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, train_bpe

SPLITS: tuple[Split, Split] = ("train", "test")
TOKENIZER_FILE = "tokenizer.json"
STATE_FILE = "state.json"
SEEN_FILE = "seen.bin"

BATCH_BYTES = 2**20  # of text handed to the tokeniser at once
SAVE_SECONDS = 5.0  # between the points from which an interrupted build goes on


@dataclass
class BuildState:
    """How far a build is. `texts` counts bytes with one separator a document: then bytes are their own tokens."""

    threshold: int  # documents hashed below it are the test split
    cursor: Any = None
    documents: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    tokens: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    texts: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    dropped: dict[str, int] = field(
        default_factory=lambda: {"duplicate": 0, "empty": 0, "not_utf8": 0, "over_budget": 0}
    )
    complete: bool = False


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token."""
    return np.min_scalar_type(vocab_size - 1)


def tokenise(folder: Path, data: DataSpec, source: Source, show: bool) -> tuple[BuildState, Tokenizer]:
    """Fill `folder` with the token files, going on from what an interrupted build left there. Raises InputError where
    the text does not give a training and a test split."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _load(folder, data) or BuildState(threshold=int(data.test_fraction * 2**64))
    while True:
        tokenizer = _tokenizer(folder, data, source, state.threshold)
        if not state.complete:
            _write(folder, data, source, state, tokenizer, show)
        threshold = _mended_threshold(folder, data, source, state)
        if threshold is None:
            return state, tokenizer
        state = BuildState(threshold)
        for file in folder.iterdir():
            file.unlink()


def _write(folder: Path, data: DataSpec, source: Source, state: BuildState, tokenizer: Tokenizer, show: bool) -> None:
    from tqdm import tqdm

    documents = open_documents(data, source, state.cursor)
    bar = tqdm(
        total=documents.total_bytes,
        initial=sum(state.texts.values()),
        unit="B",
        unit_scale=True,
        desc=f"tokenise {data.name}",
        disable=None if show else True,
    )
    dtype = token_dtype(data.vocab_size)
    with bar, ExitStack() as stack:
        files = {
            name: stack.enter_context(_truncated(folder, name, size)) for name, size in _sizes(state, dtype).items()
        }
        seen = set(np.fromfile(folder / SEEN_FILE, dtype=np.uint64).tolist())
        saved = time.monotonic()
        for batch in _batches(documents):
            taken = list(_admitted(batch, state.threshold, seen, state.dropped))
            encoded = tokenizer.encode([text for _, text, _ in taken])
            for (split, text, key), tokens in zip(taken, encoded, strict=True):
                _append(files, split, text, key, tokens.astype(dtype), data.max_train_tokens, state)
            state.cursor = documents.cursor()
            bar.update(sum(len(raw) for _, raw in batch))
            if _enough(data, state):
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(folder, files, state)
                saved = time.monotonic()
        state.complete = True
        _save(folder, files, state)


def _append(
    files: dict[str, Any],
    split: Split,
    text: bytes,
    key: int,
    tokens: np.ndarray,
    budget: int | None,
    state: BuildState,
) -> None:
    size = len(text) + 1
    if split == "train" and budget is not None and state.tokens["train"] + len(tokens) > budget:
        room = budget - state.tokens["train"]
        if not room:
            state.dropped["over_budget"] += 1
            return
        size = round(size * room / len(tokens))  # the part of the text that the part of its tokens stands for
        tokens = tokens[:room]
    files[split].write(tokens.tobytes())
    files["seen"].write(np.uint64(key).tobytes())
    state.documents[split] += 1
    state.tokens[split] += len(tokens)
    state.texts[split] += size


def _enough(data: DataSpec, state: BuildState) -> bool:
    """Whether the training budget is spent and the test split holds its test set: a stream need not be read on."""
    if data.max_train_tokens is None or state.tokens["train"] < data.max_train_tokens:
        return False
    return state.tokens["test"] > data.test_tokens


def _admitted(
    documents: Iterable[tuple[Split | None, bytes]], threshold: int, seen: set[int], dropped: dict[str, int]
) -> Iterator[tuple[Split, bytes, int]]:
    """Split, text and hash of the documents that are text, not blank and not seen before; the others are counted."""
    for split, raw in documents:
        text = clean(raw)
        if text is None:
            dropped["not_utf8"] += 1
        elif not text or text.isspace():
            dropped["empty"] += 1
        elif (key := digest(text)) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            yield split or ("test" if key < threshold else "train"), text, key


def _batches(documents: Documents) -> Iterator[list[tuple[Split | None, bytes]]]:
    batch, size = [], 0
    for split, raw in documents:
        batch.append((split, raw))
        size += len(raw)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenizer(folder: Path, data: DataSpec, source: Source, threshold: int) -> Tokenizer:
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    path = folder / TOKENIZER_FILE
    if not path.exists():
        documents = open_documents(data, source)
        admitted = _admitted(documents, threshold, set(), dict.fromkeys(BuildState(0).dropped, 0))
        trained = train_bpe((text for split, text, _ in admitted if split == "train"), data.vocab_size)
        trained.save(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return BpeTokenizer.load(path)


def _mended_threshold(folder: Path, data: DataSpec, source: Source, state: BuildState) -> int | None:
    """None where both splits hold text; else the threshold that gives the empty one a document. Few documents can all
    hash to one side; then the one nearest to the threshold changes sides."""
    empty = [split for split in SPLITS if not state.documents[split]]
    if not empty:
        return None
    keys = np.fromfile(folder / SEEN_FILE, dtype=np.uint64)
    if not len(keys):
        raise InputError(f"data {data.name}: no text in its documents ({_counts(state.dropped)}); check data.files")
    if source.test_files:
        raise InputError(
            f"data {data.name}: the {empty[0]} split is empty ({_counts(state.dropped)}); give it more text"
        )
    if len(keys) == 1:
        raise InputError(
            f"data {data.name}: one document of {sum(state.texts.values())} bytes cannot be split into train and test; "
            "give more text, or name data.test_files"
        )
    return int(keys.min()) + 1 if empty[0] == "test" else int(keys.max())


def _counts(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none dropped"


def _sizes(state: BuildState, dtype: np.dtype) -> dict[str, int]:
    """Valid bytes of each file."""
    sizes: dict[str, int] = {split: state.tokens[split] * dtype.itemsize for split in SPLITS}
    return {**sizes, "seen": sum(state.documents.values()) * 8}


def _truncated(folder: Path, name: str, size: int) -> Any:
    stream = (folder / f"{name}.bin").open("ab")
    stream.truncate(size)
    stream.seek(size)
    return stream


def _save(folder: Path, files: dict[str, Any], state: BuildState) -> None:
    for stream in files.values():
        stream.flush()
        os.fsync(stream.fileno())
    write_json(folder / STATE_FILE, dataclasses.asdict(state))


def _load(folder: Path, data: DataSpec) -> BuildState | None:
    """The state of an interrupted build, or None where there is none or its files are shorter than it says."""
    try:
        state = BuildState(**json.loads((folder / STATE_FILE).read_text()))
        sizes = _sizes(state, token_dtype(data.vocab_size))
        whole = all((folder / f"{name}.bin").stat().st_size >= size for name, size in sizes.items())
    except (OSError, ValueError, TypeError):
        return None
    return state if whole else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write by renaming, so that a reader sees the old or the new file, whole."""
    new = path.with_name(path.name + ".new")
    with new.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
