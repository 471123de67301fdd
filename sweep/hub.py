"""Documents of a dataset read through `datasets`: from the Hub, a local folder, or local Parquet, JSON-lines, CSV,
Arrow and text files. Always streamed, so that a token budget reads no more than it needs, and never with remote code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.schema import InputError
from sweep.spec import Source

LINES_BYTES = 64 * 2**10  # of a document joined from lines

BUILDERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSED = {".gz", ".zst", ".xz", ".bz2", ".lz4"}

# What `datasets` raises for a missing dataset or file, a wrong configuration, split or revision, a script, broken rows.
FAILURES = (OSError, ValueError, RuntimeError, KeyError, StopIteration)


class HubReader:
    """Rows of one split as documents."""

    def __init__(self, source: Source, files: Sequence[str], cursor: Any = None) -> None:
        """`files` are data files of the dataset, or local files; empty: all of the dataset. Raises InputError where it
        cannot be opened."""
        import datasets

        # Even for local files it would report the load to a server, and wait for that where there is no network.
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        path = os.path.expanduser(source.hub_path or builder_of(files))
        self._name = source.hub_path or ", ".join(files)
        self._field = source.hub_field
        # Rows of the text builder are the lines of its files.
        self._joined = source.hub_rows == "lines" or path == "text"
        try:
            rows = datasets.load_dataset(
                path,
                source.hub_config,
                data_files={source.hub_split: list(files)} if files else None,
                split=source.hub_split,
                revision=source.hub_revision,
                streaming=True,
            )
            if cursor:
                rows.load_state_dict(cursor)
        except FAILURES as error:
            raise InputError(
                f"data: cannot open {self._name} ({_first_line(error)}); check data.hub_* and the network"
            ) from error
        self._rows = rows

    def __iter__(self) -> Iterator[bytes]:
        texts = self._texts()
        if not self._joined:
            yield from texts
            return
        lines: list[bytes] = []
        size = 0
        for text in texts:
            line = text if text.endswith(b"\n") else text + b"\n"
            lines.append(line)
            size += len(line)
            if size >= LINES_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
        if lines:
            yield b"".join(lines)

    def cursor(self) -> Any:
        """The state that `datasets` resumes from."""
        return self._rows.state_dict()

    def _texts(self) -> Iterator[bytes]:
        rows = iter(self._rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except FAILURES as error:
                raise InputError(
                    f"data: reading {self._name} broke off ({_first_line(error)}); run the same command again to go on"
                ) from error
            if self._field not in row:
                raise InputError(
                    f"data: {self._name} has no column {self._field}; set data.hub_field to one of {', '.join(row)}"
                )
            text = "" if row[self._field] is None else row[self._field]  # dropped and counted as an empty document
            if not isinstance(text, str):
                raise InputError(f"data: column {self._field} of {self._name} holds {type(text).__name__}, not text")
            yield text.encode("utf-8", "surrogatepass")  # half a surrogate pair is no UTF-8 and is dropped later


def is_builder(hub_path: str | None) -> bool:
    """Whether data files are files of this machine: no dataset is named, only (or not even) a file format."""
    return hub_path is None or hub_path in BUILDERS.values()


def builder_of(files: Sequence[str]) -> str:
    """The file format that `datasets` reads `files` by. Raises InputError where they have none, or several."""
    found = set()
    for file in files:
        suffixes = [suffix for suffix in Path(file).suffixes if suffix not in COMPRESSED]
        builder = BUILDERS.get(suffixes[-1] if suffixes else "")
        if builder is None:
            raise InputError(
                f"data.files: unknown format of {file}; known are {', '.join(BUILDERS)}, or set data.hub_path"
            )
        found.add(builder)
    if not found:
        raise InputError("data=hub needs data.hub_path (a dataset of the Hub or a local folder) or data.files")
    if len(found) > 1:
        raise InputError(f"data.files mix formats ({', '.join(sorted(found))}); give files of one format")
    return found.pop()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
