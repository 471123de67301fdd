"""Token files: what is in them, and that nothing interrupts, doubles or damages them for good."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sweep import corpus as module
from sweep import tokenise
from sweep.cache import cache_dir
from sweep.corpus import open_corpus, prepare
from sweep.documents import clean, python_files
from sweep.schema import InputError
from sweep.spec import DataSpec, Source
from sweep.tokenizer import BpeTokenizer

TEXT = DataSpec("text", "my notes", "bytes", 256, test_fraction=0.2, test_tokens=256)


def write(folder: Path, count: int = 120, words: int = 60) -> Source:
    """`count` different files and where their token files go."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text("".join(f"word{i * 31 + j} " for j in range(words)) + "\n")
    return Source(files=(str(folder / "*.txt"),), cache_dir=str(folder.parent / "cache"))


def documents(tokens: np.ndarray) -> list[bytes]:
    return bytes(tokens).split(b"\0")[:-1]


def test_python_corpus_is_the_library(tmp_path):
    data = DataSpec("python", "stdlib", "bytes", 256, 0.05, 65_536)
    corpus = prepare(data, Source(cache_dir=str(tmp_path)))
    files = {text for path in python_files(False) if (text := clean(path.read_bytes())) and not text.isspace()}
    train, test = documents(corpus.train), documents(corpus.test)
    assert set(train) | set(test) == files
    assert len(train) + len(test) == len(files)  # no duplicates, so nothing of the test split was trained on
    assert len(corpus.train) > 5e6
    assert 0.01 < len(corpus.test) / len(corpus.train) < 0.15
    assert (corpus.vocab_size, corpus.bytes_per_token, corpus.train.dtype) == (256, 1.0, np.uint8)
    assert not corpus.train.flags.writeable


def test_the_test_set_does_not_depend_on_the_training_budget(tmp_path):
    source = Source(cache_dir=str(tmp_path))
    small, large = (
        prepare(DataSpec("python", "stdlib", "bytes", 256, 0.05, 4096, budget), source) for budget in (100_000, 200_000)
    )
    assert (len(small.train), len(large.train)) == (100_000, 200_000)
    assert np.array_equal(small.test, large.test)
    assert np.array_equal(large.train[:100_000], small.train)
    assert small.data_hash != large.data_hash


def test_the_split_follows_the_content_not_the_name(tmp_path):
    first = prepare(TEXT, write(tmp_path / "a" / "texts"))
    source = write(tmp_path / "b" / "texts")
    for path in sorted((tmp_path / "b" / "texts").iterdir()):
        path.rename(path.with_name(f"renamed {path.name}"))
    second = prepare(TEXT, source)
    assert first.path.name != second.path.name
    assert first.data_hash == second.data_hash
    assert 10 < len(documents(first.test)) < 40  # 20 % of 120


def test_what_is_no_text_is_dropped_and_counted(tmp_path):
    source = write(tmp_path / "texts")
    folder = tmp_path / "texts"
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "copy.txt").write_bytes((folder / "000.txt").read_bytes())
    (folder / "crlf copy.txt").write_bytes((folder / "001.txt").read_bytes().replace(b"\n", b"\r\n"))
    (folder / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    corpus = prepare(TEXT, source)
    assert corpus.manifest["dropped"] == {
        "unit": "documents", "duplicate": 2, "empty": 2, "not_utf8": 1, "over_budget": 0,
    }  # fmt: skip
    splits = corpus.manifest["splits"]
    assert splits["train"]["documents"] + splits["test"]["documents"] == 120
    assert splits["train"]["tokens"] == len(corpus.train)
    assert splits["train"]["bytes"] == len(corpus.train)
    assert sum(np.bincount(corpus.train, minlength=256)[[0]]) == splits["train"]["documents"]


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_no_split_is_empty(tmp_path, fraction):
    corpus = prepare(replace(TEXT, test_fraction=fraction), write(tmp_path / "texts", count=2, words=9000))
    sizes = sorted([len(documents(corpus.train)), len(documents(corpus.test))])
    assert sizes[0] == 1
    assert sizes[1] == 3  # blocks of two files of 86 kB


def test_test_files_override_the_split_and_are_never_trained_on(tmp_path):
    source = write(tmp_path / "texts")
    (tmp_path / "held.txt").write_bytes((tmp_path / "texts" / "000.txt").read_bytes())
    corpus = prepare(TEXT, replace(source, test_files=(str(tmp_path / "held.txt"),)))
    assert documents(corpus.test) == [(tmp_path / "held.txt").read_bytes()]
    assert len(documents(corpus.train)) == 119


def test_a_budget_is_exact_and_reads_no_further(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as stream:
        for i in range(3000):
            stream.write(json.dumps({"text": f"document {i} of a long stream of words\n" * 20}) + "\n")
    (tmp_path / "b.jsonl").write_text('{"text": broken\n')  # unusable: reading on to here would fail
    source = Source(files=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")), cache_dir=str(tmp_path / "cache"))
    data = DataSpec("hub", "stream", "bytes", 256, 0.1, 8192, max_train_tokens=1_000_003)
    corpus = prepare(data, source)
    assert len(corpus.train) == 1_000_003
    assert len(corpus.test) > 8192
    with pytest.raises(InputError, match="broke off"):
        prepare(replace(data, max_train_tokens=None), source)


def test_bpe_learns_from_the_training_split_only(tmp_path):
    source = write(tmp_path / "texts")
    (tmp_path / "held.txt").write_text("zyzzyva zyzzyva zyzzyva\n" * 200)
    data = replace(TEXT, tokenizer="bpe", vocab_size=600)
    corpus = prepare(data, replace(source, test_files=(str(tmp_path / "held.txt"),)))
    vocabulary = json.loads((corpus.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 600 == corpus.vocab_size
    assert "word" in "".join(vocabulary)
    assert not any("zy" in token for token in vocabulary)
    assert corpus.train.dtype == np.uint16
    assert corpus.train.max() < 600
    assert corpus.bytes_per_token == pytest.approx(24 * 200 / len(corpus.test), rel=0.01)
    decode = BpeTokenizer.load(corpus.path / "tokenizer.json")._tokenizer.decode
    assert decode(corpus.test[:-1].tolist()) == "zyzzyva zyzzyva zyzzyva\n" * 200


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_killed_build_goes_on_to_the_same_tokens(tmp_path, tokenizer):
    data = replace(TEXT, tokenizer=tokenizer, vocab_size=256 if tokenizer == "bytes" else 400)
    whole = prepare(data, replace(write(tmp_path / "texts"), cache_dir=str(tmp_path / "whole")))
    source = write(tmp_path / "texts")
    child = f"""
import os
from sweep import tokenise, tokenizer
from sweep.corpus import prepare
from sweep.spec import DataSpec, Source
tokenise.BATCH_BYTES, tokenise.SAVE_SECONDS = 4000, 0
encode, calls = tokenizer.{"ByteTokenizer" if tokenizer == "bytes" else "BpeTokenizer"}.encode, []
def dying(self, texts):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), 9)
    return encode(self, texts)
tokenizer.{"ByteTokenizer" if tokenizer == "bytes" else "BpeTokenizer"}.encode = dying
prepare({data!r}, {source!r})
"""
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == -signal.SIGKILL
    (part,) = (tmp_path / "cache").glob(".*.part")
    assert json.loads((part / "state.json").read_text())["cursor"][1][0] > 10  # files done
    with (part / "train.bin").open("ab") as stream:
        stream.write(b"written, but not yet counted")
    corpus = prepare(data, source)
    assert corpus.data_hash == whole.data_hash
    assert corpus.manifest["splits"] == whole.manifest["splits"]
    assert corpus.manifest["dropped"] == whole.manifest["dropped"]
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_a_build_whose_files_lack_what_its_state_counts_starts_afresh(tmp_path, monkeypatch):
    source = write(tmp_path / "texts")
    monkeypatch.setattr(module, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(TEXT, source)
    monkeypatch.undo()
    (part,) = (tmp_path / "cache").glob(".*.part")
    os.truncate(part / "train.bin", 100)
    assert prepare(TEXT, source).data_hash == prepare(TEXT, replace(source, cache_dir=str(tmp_path / "new"))).data_hash


def test_several_processes_at_once_build_one_corpus(tmp_path):
    source = write(tmp_path / "texts", count=400)
    child = f"""
from sweep.corpus import prepare
from sweep.spec import DataSpec, Source
print(prepare({TEXT!r}, {source!r}).data_hash)
"""
    children = [subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=60)[0] for process in children}
    assert [process.returncode for process in children] == [0, 0, 0]
    assert printed == {prepare(TEXT, source).data_hash + "\n"}
    assert len([path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]) == 1


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "no manifest"])
def test_damaged_token_files_are_named_and_built_again(tmp_path, caplog, damage):
    source = write(tmp_path / "texts")
    corpus = prepare(TEXT, source)
    file = corpus.path / "train.bin"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        os.truncate(file, len(content) - 1)
    else:
        (file if damage == "missing" else corpus.path / "corpus.json").unlink()
    with pytest.raises(InputError, match=r"damaged|no corpus"):
        open_corpus(corpus.path)
    with caplog.at_level(logging.WARNING):
        again = prepare(TEXT, source)
    assert [record.getMessage() for record in caplog.records] == [f"{corpus.path} is damaged; building it again"]
    assert again.data_hash == corpus.data_hash
    assert open_corpus(again.path).data_hash == corpus.data_hash


def test_a_large_file_is_checked_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE_CHUNK", 16)
    monkeypatch.setattr(module, "PROBE_CHUNKS", 4)
    file = tmp_path / "large"
    file.write_bytes(bytes(1000))
    probe = module._probe(file)
    for place, seen in ((0, True), (999, True), (100, False)):
        content = bytearray(1000)
        content[place] = 1
        file.write_bytes(content)
        assert (module._probe(file) != probe) == seen


def test_made_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    source = write(tmp_path / "texts")
    first = prepare(TEXT, source)
    monkeypatch.setattr(module, "tokenise", None)  # not called again
    assert prepare(TEXT, source).path == first.path
    assert prepare(replace(TEXT, test_tokens=512), source).path == first.path
    assert prepare(TEXT, replace(source, max_epochs=4.0)).path == first.path
    monkeypatch.undo()
    (tmp_path / "texts" / "000.txt").write_text("something else\n")
    assert prepare(TEXT, source).data_hash != first.data_hash


def test_progress_is_one_bar(tmp_path, monkeypatch, capsys):
    prepare(TEXT, write(tmp_path / "texts"), progress=True)
    assert capsys.readouterr().err == ""  # not a terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare(TEXT, write(tmp_path / "more"), progress=True)
    assert "tokenise my notes: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no text in its documents"),
        ([b"", b"\n"], "no text in its documents .2 empty"),
        (["caf\u00e9".encode("utf-16"), b"\xff"], "2 not_utf8"),
        ([b"one short text\n"], "one document of 16 bytes cannot be split"),
        ([b"the same\n", b"the same\n"], "one document of"),
    ],
)
def test_unusable_text_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "folder.txt").mkdir()
    for i, raw in enumerate(content):
        (tmp_path / "texts" / f"{i}.txt").write_bytes(raw)
    source = Source(files=(str(tmp_path / "texts/*.txt"), str(tmp_path / "texts/*")), cache_dir=str(tmp_path / "cache"))
    if not content:
        (tmp_path / "texts" / "other.txt").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        prepare(TEXT, source)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    source = replace(write(tmp_path / "texts"), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot write token files in .*set data\.cache_dir"):
        prepare(TEXT, source)


def test_the_cache_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("ISOLOSS_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("ISOLOSS_CACHE")
    assert cache_dir() == Path("/xdg/isoloss")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache/isoloss"


def test_token_types_are_the_smallest():
    sizes = {256: np.uint8, 257: np.uint16, 65_536: np.uint16, 65_537: np.uint32}
    assert {size: tokenise.token_dtype(size) for size in sizes} == {k: np.dtype(v) for k, v in sizes.items()}
