"""A text as token files that are made once, memory-mapped and reused by hash.

corpus = prepare(data, source)      # builds or finds it
corpus.train, corpus.test           # 1-D read-only token arrays
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweep.cache import cache_dir
from sweep.documents import fingerprint
from sweep.lease import take
from sweep.schema import InputError
from sweep.spec import DataSpec, Source
from sweep.tokenise import SEEN_FILE, SPLITS, STATE_FILE, TOKENIZER_FILE, BuildState, token_dtype, tokenise, write_json
from sweep.tokenizer import Tokenizer

FORMAT = 1  # of the token files and of how documents become tokens; part of the key
CORPUS_FILE = "corpus.json"
PROBE_CHUNK, PROBE_CHUNKS = 2**20, 32  # bytes read to recognise a damaged file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Token files of one text, opened."""

    path: Path
    train: np.ndarray  # [tokens], read-only, of the smallest unsigned dtype; token 0 ends each document
    test: np.ndarray
    data_hash: str  # of both token files and the tokeniser: equal hashes mean equal tokens
    vocab_size: int
    bytes_per_token: float  # of the test split, separators counted as bytes too
    manifest: dict[str, Any]


def prepare(data: DataSpec, source: Source, progress: bool = False) -> Corpus:
    """Tokenise the text of `data`, or open the token files made before from the same configuration and files.

    Safe in several processes at once (one builds, the others wait), resumed where a build was interrupted. Raises
    InputError where the text is missing, unreadable, empty or cannot be split, and where the cache cannot be written.
    """
    root = Path(source.cache_dir).expanduser() if source.cache_dir else cache_dir() / "corpora"
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', data.name)}-{_key(data, source)}"
    path = root / name
    if corpus := _intact(path):
        return corpus
    with _writable(root), _alone(root / f".{name}.lease"):
        if corpus := _intact(path):  # built while this process waited
            return corpus
        if path.exists():
            log.warning("%s is damaged; building it again", path)
            shutil.rmtree(path)
        part = root / f".{name}.part"
        state, tokenizer = tokenise(part, data, source, progress)
        _finish(part, data, source, state, tokenizer)
        part.rename(path)
        _sync(root)
    return open_corpus(path)


def open_corpus(path: Path) -> Corpus:
    """Open token files made by `prepare`. Raises InputError where they are missing or damaged."""
    try:
        manifest = json.loads((path / CORPUS_FILE).read_text())
        for split in SPLITS:
            if _probe(path / f"{split}.bin") != manifest["splits"][split]["probe"]:
                raise InputError(f"{path}: {split}.bin is damaged; delete the folder and run the same command again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no corpus ({error}); delete it and run the same command again") from error
    dtype = np.dtype(manifest["dtype"])
    return Corpus(
        path=path,
        train=np.memmap(path / "train.bin", dtype=dtype, mode="r"),
        test=np.memmap(path / "test.bin", dtype=dtype, mode="r"),
        data_hash=manifest["data_hash"],
        vocab_size=manifest["vocab_size"],
        bytes_per_token=manifest["bytes_per_token"],
        manifest=manifest,
    )


def _intact(path: Path) -> Corpus | None:
    try:
        return open_corpus(path)
    except InputError:
        return None


def _key(data: DataSpec, source: Source) -> str:
    """Hash of all that decides the tokens, found without reading the text."""
    config = dataclasses.asdict(data)
    if data.max_train_tokens is None:
        del config["test_tokens"]  # decides only how far a budgeted text is read
    origin = {key: value for key, value in dataclasses.asdict(source).items() if key not in ("cache_dir", "max_epochs")}
    text = json.dumps([FORMAT, config, origin, fingerprint(data, source)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finish(part: Path, data: DataSpec, source: Source, state: BuildState, tokenizer: Tokenizer) -> None:
    """Turn a complete build into a corpus: its manifest instead of its state."""
    splits = {
        split: {
            "documents": state.documents[split],
            "bytes": state.texts[split],
            "tokens": state.tokens[split],
            "probe": _probe(part / f"{split}.bin"),
        }
        for split in SPLITS
    }
    manifest = {
        "format": FORMAT,
        "name": data.name,
        "data_hash": _data_hash(part),
        "dtype": token_dtype(data.vocab_size).name,
        "tokenizer": data.tokenizer,
        "vocab_size": data.vocab_size,
        "vocab_used": tokenizer.vocab_size,
        "bytes_per_token": state.texts["test"] / state.tokens["test"],
        "splits": splits,
        "dropped": {"unit": "documents", **state.dropped},
        "data": dataclasses.asdict(data),
        "source": dataclasses.asdict(source),
    }
    for name in (SEEN_FILE, STATE_FILE):
        (part / name).unlink(missing_ok=True)
    write_json(part / CORPUS_FILE, manifest)
    _sync(part)


def _data_hash(folder: Path) -> str:
    """Sixteen hexadecimal digits over the tokeniser and every token, in order."""
    total = hashlib.sha256()
    for name in (TOKENIZER_FILE, "train.bin", "test.bin"):
        if (folder / name).exists():
            with (folder / name).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def _probe(path: Path) -> str:
    """Hash of a file's size and of chunks at equal distances over it, its first and last bytes among them: the whole
    file up to 32 MiB, and never more to read than that."""
    size = path.stat().st_size
    last = max(size - PROBE_CHUNK, 0)
    total = hashlib.blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as stream:
        if size <= PROBE_CHUNK * PROBE_CHUNKS:
            total.update(stream.read())
        else:
            for i in range(PROBE_CHUNKS):
                stream.seek(last * i // (PROBE_CHUNKS - 1))
                total.update(stream.read(PROBE_CHUNK))
    return total.hexdigest()


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a clear InputError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise
        raise InputError(
            f"cannot write token files in {root} ({error.strerror}); make room or set data.cache_dir or $ISOLOSS_CACHE"
        ) from error


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lease of `directory` for the length of the block, however long another process takes before."""
    what = "the tokenising of"
    try:
        lease = take(directory, what)
    except InputError:
        log.warning("another process is tokenising this text; waiting for it")
        lease = take(directory, what, wait_seconds=math.inf)
    try:
        yield
    finally:
        lease.release()


def _sync(folder: Path) -> None:
    """Make a folder's new names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
