"""Documents of a text: Python's own source, the user's files, or a dataset read through `datasets`.

A document is raw bytes as they lie in the source; `clean` makes them text. Every reader is resumable: `cursor()` is
plain data from which a new reader goes on right after the document yielded last.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from sweep.hub import HubReader, is_builder
from sweep.schema import InputError
from sweep.spec import DataSpec, Source

Split = Literal["train", "test"]

BLOCK_BYTES = 64 * 2**10  # of a document where the text is a few large files
FEW_FILES = 100  # below this the documents are blocks, not files

# Folders of the library that are no library code: tests hold odd strings by design, the rest is not Python's own.
NOT_LIBRARY = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}


class Reader(Protocol):
    """Yields raw documents and knows where it is."""

    def __iter__(self) -> Iterator[bytes]:
        """Raw documents from the cursor on."""

    def cursor(self) -> Any:
        """Plain data: the place after the last document yielded."""


class Documents:
    """All documents of a source in a fixed order, each with its split where the source states one: test files come
    first, so that a copy of a test document among the training documents is the one that is dropped."""

    def __init__(
        self, parts: Sequence[tuple[Split | None, Callable[[Any], Reader]]], total_bytes: int | None, cursor: Any = None
    ) -> None:
        self._parts = parts
        self._part: int = cursor[0] if cursor else 0
        self._at: Any = cursor[1] if cursor else None
        self._reader: Reader | None = None
        self.total_bytes = total_bytes  # for progress; None where unknown

    def __iter__(self) -> Iterator[tuple[Split | None, bytes]]:
        while self._part < len(self._parts):
            split, open_reader = self._parts[self._part]
            self._reader = open_reader(self._at)
            for raw in self._reader:
                yield split, raw
            self._part, self._at, self._reader = self._part + 1, None, None

    def cursor(self) -> list[Any]:
        """The place after the last document yielded, for `open_documents`."""
        return [self._part, self._reader.cursor() if self._reader else self._at]


class FileReader:
    """Files as documents, or as blocks of at most `BLOCK_BYTES` cut after a line end (after a character where a block
    is one line)."""

    def __init__(self, files: Sequence[Path], blocks: bool, cursor: Any = None) -> None:
        self._files, self._blocks = files, blocks
        self._file: int = cursor[0] if cursor else 0
        self._offset: int = cursor[1] if cursor else 0

    def __iter__(self) -> Iterator[bytes]:
        while self._file < len(self._files):
            path = self._files[self._file]
            try:
                raw, more = _block(path, self._offset) if self._blocks else (path.read_bytes(), False)
            except OSError as error:
                raise InputError(f"data: cannot read {path} ({error.strerror}); restore it or leave it out") from error
            if more:
                self._offset += len(raw)
            else:
                self._file, self._offset = self._file + 1, 0
            yield raw

    def cursor(self) -> list[int]:
        """File and offset."""
        return [self._file, self._offset]


def _block(path: Path, offset: int) -> tuple[bytes, bool]:
    """The block at `offset` and whether more follows."""
    with path.open("rb") as stream:
        stream.seek(offset)
        raw = stream.read(BLOCK_BYTES + 1)
    if len(raw) <= BLOCK_BYTES:
        return raw, False
    end = raw.rfind(b"\n", 0, BLOCK_BYTES) + 1
    if not end:
        end = BLOCK_BYTES
        while end > BLOCK_BYTES - 4 and raw[end] & 0xC0 == 0x80:  # inside a UTF-8 character
            end -= 1
    return raw[:end], True


def clean(raw: bytes) -> bytes | None:
    """The document's text as UTF-8 with Unix line ends, without byte-order mark and NULs (NUL separates documents in
    the token file), or None where it is not UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return None
    return raw.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"").replace(b"\r\n", b"\n")


def digest(text: bytes) -> int:
    """64-bit hash of a document's text: its identity for the split and against duplicates, on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def open_documents(data: DataSpec, source: Source, cursor: Any = None) -> Documents:
    """Documents of `data` in a fixed order, from `cursor` on. Raises InputError where files are missing, unreadable or
    not of a known kind."""
    if data.source == "python":
        files = _by_digest(python_files(source.site_packages))
        return Documents([(None, lambda at: FileReader(files, False, at))], _size(files), cursor)
    parts: list[tuple[Split | None, Callable[[Any], Reader]]] = []
    rest: Split | None = "train" if source.test_files else None
    if data.source == "hub":
        train_names, test_names = _hub_files(source.files, source), _hub_files(source.test_files, source)
        if test_names:
            parts.append(("test", lambda at: HubReader(source, test_names, at)))
        parts.append((rest, lambda at: HubReader(source, train_names, at)))
        return Documents(parts, None, cursor)
    if not source.files:
        raise InputError("data=text needs data.files, for example data.files=[notes/*.txt]")
    train, test = expand(source.files, "data.files"), expand(source.test_files, "data.test_files")
    if test:
        parts.append(("test", lambda at: FileReader(test, len(test) < FEW_FILES, at)))
    parts.append((rest, lambda at: FileReader(train, len(train) < FEW_FILES, at)))
    return Documents(parts, _size([*test, *train]), cursor)


def fingerprint(data: DataSpec, source: Source) -> list[Any]:
    """Plain data that changes when the documents do, found without reading them: names, sizes and times of local files,
    the names of a dataset elsewhere."""
    if data.source == "python":
        files = python_files(source.site_packages)
    elif data.source == "hub" and not is_builder(source.hub_path):
        folder = Path(source.hub_path or "").expanduser()
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    else:
        files = [*expand(source.test_files, "data.test_files"), *expand(source.files, "data.files")]
    stats = ((str(file), file.stat()) for file in files)
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def python_files(site_packages: bool) -> list[Path]:
    """Source files of the standard library without its tests, and of the installed packages where asked; sorted."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"], paths["platstdlib"]]
    if site_packages:
        roots += [paths["purelib"], paths["platlib"]]
    found: set[Path] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in NOT_LIBRARY]
            found.update(Path(folder, name) for name in names if name.endswith(".py"))
    files = sorted(path for path in found if os.access(path, os.R_OK))
    if not files:
        raise InputError(f"data=python: no source files under {paths['stdlib']}; use data=text with data.files")
    return files


def expand(patterns: Sequence[str], key: str) -> list[Path]:
    """Files that the paths and globs (`**` too) name, each once, in the patterns' order and sorted within a pattern.
    Raises InputError, naming `key`, where one names nothing or something unreadable."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        full = os.path.expanduser(pattern)
        matches = [Path(full)] if os.path.exists(full) else [Path(p) for p in sorted(glob.glob(full, recursive=True))]
        if not matches:
            raise InputError(f"{key}: nothing matches {pattern} (in {Path.cwd()}); check the path or the pattern")
        if len(matches) == 1 and matches[0].is_dir():
            raise InputError(
                f"{key}: {pattern} is a folder; name its files, for example {pattern.rstrip('/')}/**/*.txt"
            )
        for path in matches:
            if path.is_dir():
                continue
            if not os.access(path, os.R_OK):
                raise InputError(f"{key}: cannot read {path}; change its permissions or leave it out")
            files[path.resolve()] = None
    return list(files)


def _by_digest(files: Sequence[Path]) -> list[Path]:
    """Files in the order of their content's hash: the same on every machine, and any prefix is a random sample."""
    return sorted(files, key=lambda file: (digest(clean(file.read_bytes()) or b""), file))


def _hub_files(patterns: Sequence[str], source: Source) -> list[str]:
    """Local files where no dataset is named, else patterns inside the dataset, which `datasets` resolves."""
    if not is_builder(source.hub_path):
        return list(patterns)
    return [str(file) for file in expand(patterns, "data.files")]


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)
