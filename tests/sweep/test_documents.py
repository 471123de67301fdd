"""Documents: what counts as one, in which order, and how reading goes on after a cursor."""

import itertools
import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweep import documents as module
from sweep.documents import BLOCK_BYTES, FileReader, clean, digest, expand, fingerprint, open_documents, python_files
from sweep.schema import InputError
from sweep.spec import DataSpec, Source

TEXTS = [f"document {i}\n" + "words and more words\n" * (i % 7) for i in range(60)]


def data(source: str) -> DataSpec:
    return DataSpec(source, "t", "bytes", 256, 0.1, 64)


def local_files(folder: Path) -> dict[str, Path]:
    paths = {suffix: folder / f"a.{suffix}" for suffix in ("parquet", "jsonl", "txt")}
    pq.write_table(pa.table({"text": TEXTS, "number": range(len(TEXTS))}), paths["parquet"], row_group_size=8)
    paths["jsonl"].write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    paths["txt"].write_text("".join(TEXTS) * 200)
    return paths


def test_clean_drops_what_no_text_has():
    assert clean(b"\xef\xbb\xbfa\r\nb\0c\n") == b"a\nbc\n"
    assert clean("caf\u00e9".encode("latin-1")) is None


def test_python_files_are_the_library_without_its_tests():
    files = python_files(site_packages=False)
    names = {path.name for path in files}
    assert {"ast.py", "argparse.py", "textwrap.py"} <= names
    folders = {part for path in files for part in path.parts[-4:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert {path.name for path in python_files(site_packages=True)} > names


def test_python_documents_come_in_the_order_of_their_content(monkeypatch, tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.py").write_text(f"name = {name!r}\n")
    monkeypatch.setattr(module, "python_files", lambda site_packages: sorted(tmp_path.glob("*.py")))
    first = [raw for _, raw in open_documents(data("python"), Source())]
    for name in "abcdef":  # another machine: other names, the same content
        (tmp_path / f"{name}.py").rename(tmp_path / f"{'fedcba'['abcdef'.index(name)]}_.py")
    assert [raw for _, raw in open_documents(data("python"), Source())] == first
    assert [digest(raw) for raw in first] == sorted(digest(raw) for raw in first)


def test_few_files_are_blocks_cut_at_line_ends(tmp_path):
    text = b"".join(b"line %d of a longer text\n" % i for i in range(20_000))
    (tmp_path / "a.txt").write_bytes(text)
    blocks = list(FileReader([tmp_path / "a.txt"], blocks=True))
    assert b"".join(blocks) == text
    assert all(block.endswith(b"\n") and len(block) <= BLOCK_BYTES for block in blocks)
    assert min(map(len, blocks[:-1])) > BLOCK_BYTES - 100


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("lead", ["", "a", "ab", "abc"])
def test_one_huge_line_is_cut_between_characters(tmp_path, character, lead):
    text = (lead + character * 80_000).encode()
    (tmp_path / "a.txt").write_bytes(text)
    blocks = list(FileReader([tmp_path / "a.txt"], blocks=True))
    assert b"".join(blocks) == text
    assert len(blocks) == -(-len(text) // BLOCK_BYTES)
    assert all(clean(block) == block for block in blocks)


def test_many_files_are_documents(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:03}.txt").write_text("long line\n" * 10_000 if i == 7 else f"text {i}\n")
    found = list(open_documents(data("text"), Source(files=(str(tmp_path / "*.txt"),))))
    assert len(found) == 100
    assert found[7] == (None, b"long line\n" * 10_000)


def test_test_files_come_first_and_state_the_split(tmp_path):
    (tmp_path / "train.txt").write_text("train\n")
    (tmp_path / "test.txt").write_text("test\n")
    source = Source(files=(str(tmp_path / "train.txt"),), test_files=(str(tmp_path / "test.txt"),))
    assert list(open_documents(data("text"), source)) == [("test", b"test\n"), ("train", b"train\n")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_datasets_reads_local_files(tmp_path, kind):
    path = local_files(tmp_path)[kind]
    found = [raw for _, raw in open_documents(data("hub"), Source(files=(str(path),)))]
    if kind == "txt":  # its rows are lines, joined again
        assert b"".join(found) == path.read_bytes()
        assert len(found) == -(-path.stat().st_size // (BLOCK_BYTES + 30))
    else:
        assert found == [text.encode() for text in TEXTS]


def test_local_files_need_no_network(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args) or [])
    for kind in ("parquet", "jsonl", "txt"):
        assert list(open_documents(data("hub"), Source(files=(str(local_files(tmp_path)[kind]),))))
    assert asked == []


def test_datasets_reads_a_folder_and_another_column(tmp_path):
    pq.write_table(pa.table({"content": TEXTS}), tmp_path / "train.parquet")
    source = Source(hub_path=str(tmp_path), hub_field="content")
    assert [raw for _, raw in open_documents(data("hub"), source)] == [text.encode() for text in TEXTS]
    assert len(fingerprint(data("hub"), source)) == 1


def test_a_row_without_text_is_an_empty_document(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    source = Source(files=(str(tmp_path / "a.parquet"),))
    assert [raw for _, raw in open_documents(data("hub"), source)] == [b"a", b"", b"b"]


def test_rows_that_are_lines_are_joined(tmp_path):
    rows = [" = Title = \n", "", " A paragraph. \n"] * 3000  # as wikitext has them
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    source = Source(files=(str(tmp_path / "a.parquet"),), hub_rows="lines")
    found = [raw for _, raw in open_documents(data("hub"), source)]
    assert b"".join(found) == b" = Title = \n\n A paragraph. \n" * 3000
    assert len(found) == 2


@pytest.mark.parametrize("kind", ["text", "parquet", "jsonl", "txt"])
def test_reading_goes_on_after_a_cursor(tmp_path, kind):
    paths = local_files(tmp_path)
    if kind == "text":
        spec, source = data("text"), Source(files=(str(paths["txt"]),), test_files=(str(paths["jsonl"]),))
    else:
        spec, source = data("hub"), Source(files=(str(paths[kind]),), test_files=(str(paths[kind]),))
    whole = list(open_documents(spec, source))
    half, end = len(whole) // 2, len(whole)  # where the test files end
    for stop in {0, 1, 2, half - 1, half, half + 1, end - 1, end}:
        reading = open_documents(spec, source)
        head = list(itertools.islice(reading, stop))
        cursor = json.loads(json.dumps(reading.cursor()))
        assert head + list(open_documents(spec, source, cursor)) == whole, stop


def test_fingerprint_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\n")
    source = Source(files=(str(path),))
    before = fingerprint(data("text"), source)
    assert fingerprint(data("text"), source) == before
    path.write_text("b\n")
    os.utime(path, ns=(1, 1))
    assert fingerprint(data("text"), source) != before


def test_expand_names_each_file_once_and_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand((str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt"), str(tmp_path / "odd[1].txt")), "data.files")
    assert [path.name for path in found] == ["b.txt", "a.txt", "odd[1].txt", "c.txt"]


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        (Source(), "text", "needs data.files"),
        (Source(files=("nowhere/*.txt",)), "text", "nothing matches nowhere"),
        (Source(files=("{here}",)), "text", "is a folder"),
        (Source(), "hub", "needs data.hub_path"),
        (Source(files=("{here}/x.docx",)), "hub", "unknown format of .*x.docx"),
        (Source(files=("{here}/*.*",)), "hub", "unknown format|mix formats"),
        (Source(files=("{here}/a.parquet",), hub_field="content"), "hub", "no column content; .* text, number"),
        (Source(files=("{here}/a.parquet",), hub_field="number"), "hub", "holds int, not text"),
        (Source(files=("{here}/broken.parquet",)), "hub", "broken.parquet"),
        (Source(hub_path="{here}", hub_split="valid", files=("a.parquet",), hub_config="no"), "hub", "cannot open"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, source, spec, message):
    local_files(tmp_path)
    (tmp_path / "x.docx").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    here = Source(
        **{
            **{name: getattr(source, name) for name in ("hub_split", "hub_config", "hub_field")},
            "files": tuple(file.format(here=tmp_path) for file in source.files),
            "hub_path": source.hub_path and source.hub_path.format(here=tmp_path),
        }
    )
    with pytest.raises(InputError, match=message) as caught:
        list(open_documents(data(spec), here))
    assert "\n" not in str(caught.value)


def test_a_file_that_vanishes_is_named(tmp_path):
    reader = FileReader([tmp_path / "gone.txt"], blocks=True)
    with pytest.raises(InputError, match=r"cannot read .*gone\.txt"):
        list(reader)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(InputError, match=r"cannot read .*a\.txt"):
        list(open_documents(data("text"), Source(files=(str(tmp_path / "*.txt"),))))
