"""Preparing a corpus: every kind of file, interruptions, and what is refused."""

import gzip
import itertools
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data.corpus import prepare as module
from pretrain.data.corpus.corpus import Corpus
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.errors import UserError
from pretrain.runtime.files import Lock
from tests.unit.pretrain.checkpoint.ranks import run_ranks

ROWS = ["one two\nthree", "", "four", "  five six  "]


def texts_of(folder: Path) -> list[str]:
    """The documents of a corpus, decoded."""
    corpus = Corpus.open(folder)
    starts, lengths = corpus.tokens.document_ranges(np.arange(corpus.tokens.documents))
    return [
        corpus.tokenizer.decode(corpus.read(starts[i : i + 1], lengths[i : i + 1])[:-1]) for i in range(len(starts))
    ]


@pytest.fixture
def given(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "given")
    return tmp_path / "given"


def test_json_and_parquet(tmp_path: Path, given: Path) -> None:
    """Rows with text are documents, in order, over several files; another column; compressed."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": 1, "text": row}) + "\n" for row in ROWS))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": 2, "text": "seven"}) + "\n")
    pq.write_table(pa.table({"content": [*ROWS, None]}), tmp_path / "c.parquet")
    source = Source((tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"))
    description, existed = prepare(source, tmp_path / "json", SentencePieceEncoder(given))
    assert texts_of(tmp_path / "json") == [*(row for row in ROWS if row), "seven"]
    assert (description["documents"], description["bytes"], existed) == (4, 13 + 4 + 12 + 5, False)
    prepare(Source((tmp_path / "c.parquet",), key="content"), tmp_path / "parquet", SentencePieceEncoder(given))
    assert texts_of(tmp_path / "parquet") == [row for row in ROWS if row]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", ["a b", "c", "d", "e"]),
        ("paragraph", ["a b\nc", "d\ne"]),
        ("file", ["a b\nc\n\nd\ne\n"]),
    ],
)
def test_text(tmp_path: Path, given: Path, document: str, expected: list[str]) -> None:
    """What makes a document of a text file."""
    (tmp_path / "x.txt").write_text("a b\nc\n\nd\ne\n")
    prepare(Source((tmp_path / "x.txt",), document=document), tmp_path / "out", SentencePieceEncoder(given))
    assert [text.strip("\n") for text in texts_of(tmp_path / "out")] == [text.strip("\n") for text in expected]


def test_part_of_the_rows_joined(tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of the rows, some of which make a document; the same from a folder as a data set."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "train.jsonl"
    file.write_text("".join(json.dumps({"line": f"row {n}" if n != 3 else ""}) + "\n" for n in range(600)))
    for number, source in enumerate(
        (
            Source((file,), key="line", split="train[:50%]", join=2),
            Source(dataset=str(tmp_path / "set"), key="line", split="train[:50%]", join=2),
        )
    ):
        prepare(source, tmp_path / str(number), SentencePieceEncoder(given))
        found = texts_of(tmp_path / str(number))
        assert found[:3] == ["row 0\nrow 1", "row 2", "row 4\nrow 5"]
        assert (len(found), found[-1]) == (150, "row 298\nrow 299")
        assert next(source.batches(skip=149)) == ["row 298\nrow 299"]


def test_trained_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    """Without a tokenizer one is trained, the same for the same text; too large a one is refused."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source((tmp_path / "x.jsonl",))
    first, _ = prepare(source, tmp_path / "one", SentencePieceEncoder(vocab_size=600))
    again, _ = prepare(source, tmp_path / "two", SentencePieceEncoder(vocab_size=600))
    assert Corpus.open(tmp_path / "one").tokenizer.size == 600
    assert first == again
    with pytest.raises(UserError, match=r"for \d+ pieces, not for 100000: give --vocab-size"):
        prepare(source, tmp_path / "three", SentencePieceEncoder(vocab_size=100_000))
    assert not (tmp_path / "three").exists()


def test_interrupted(tmp_path: Path, texts: list[str], given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies goes on from its journal, and gives the same files as one that did not."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 8))
    source = Source((tmp_path / "x.jsonl",))
    prepare(source, tmp_path / "whole", SentencePieceEncoder(given))

    monkeypatch.setattr(module, "EVERY", 10_000)
    read = Source.batches
    skipped = []

    def dies(self: Source, skip: int = 0) -> Iterator[list[str]]:
        skipped.append(skip)
        yield from itertools.islice(read(self, skip), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(Source, "batches", dies)
    monkeypatch.setattr(module, "_beginning", lambda _: [])
    monkeypatch.setattr(module, "_any_text", lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", SentencePieceEncoder(given))
    assert not (tmp_path / "out").exists()
    with open(tmp_path / "out.partial" / "tokens.bin", "ab") as file:
        file.write(b"torn")  # what a crash leaves beyond the journal
    monkeypatch.setattr(Source, "batches", lambda self, skip=0: skipped.append(skip) or read(self, skip))
    prepare(source, tmp_path / "out", SentencePieceEncoder(given))
    assert skipped == [0, 1024]
    for name in ("tokens.bin", "tokens.idx", "corpus.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "corpus.json",
        "tokenizer",
        "tokens.bin",
        "tokens.idx",
    ]


@pytest.mark.parametrize("removed", range(1, 6))
def test_interrupted_at_the_end(
    tmp_path: Path, texts: list[str], given: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """What is of no more use is removed in an order in which any part of it may be left."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source((tmp_path / "x.jsonl",))
    prepare(source, tmp_path / "whole", SentencePieceEncoder(given))
    count, unlink, finish = itertools.count(1), Path.unlink, module._finish
    monkeypatch.setattr(module, "EVERY", 10_000)  # so that there is a journal

    def dies(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if next(count) == removed:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *given: patch.setattr(Path, "unlink", dies) or finish(*given))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", SentencePieceEncoder(given))
    prepare(source, tmp_path / "out", SentencePieceEncoder(given))
    for name in ("tokens.bin", "tokens.idx", "corpus.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Corpus.open(tmp_path / "out").tokens.documents == len(texts)


def test_another_request_starts_anew(tmp_path: Path, texts: list[str], given: Path) -> None:
    """Left-overs of another source are not gone on with."""
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "request.json").write_text("{}")
    (partial / "journal.json").write_text(json.dumps({"rows": 5, "documents": 1, "tokens": 3, "bytes": 9}))
    (partial / "tokens.bin").write_bytes(b"123456")
    prepare(Source((tmp_path / "x.jsonl",)), tmp_path / "out", SentencePieceEncoder(given))
    assert texts_of(tmp_path / "out") == ["short"]


def test_finished_output(tmp_path: Path, given: Path) -> None:
    """The same request again changes nothing; another one is refused; so is a folder that is no corpus."""
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"text": "short"}) + "\n")
    first = prepare(Source((file,)), tmp_path / "out", SentencePieceEncoder(given))
    assert prepare(Source((file,)), tmp_path / "out", SentencePieceEncoder(given)) == (first[0], True)
    with pytest.raises(UserError, match=r"another tokenizer and vocab_size: remove it or choose another --output"):
        prepare(Source((file,)), tmp_path / "out", SentencePieceEncoder(vocab_size=300))
    file.write_text(json.dumps({"text": "other"}) + "\n")
    with pytest.raises(UserError, match="another source"):
        prepare(Source((file,)), tmp_path / "out", SentencePieceEncoder(given))
    with pytest.raises(UserError, match="exists and is no corpus"):
        prepare(Source((file,)), given, SentencePieceEncoder(given))


def test_two_at_once(tmp_path: Path, given: Path) -> None:
    """A second process on the same output is turned away."""
    (tmp_path / "x.txt").write_text("text")
    (tmp_path / "out.partial").mkdir()

    def second(rank: int) -> str:
        with pytest.raises(UserError) as error:
            prepare(Source((tmp_path / "x.txt",)), tmp_path / "out", SentencePieceEncoder(given))
        return str(error.value)

    with Lock(tmp_path / "out.partial" / "lock"):
        (message,) = run_ranks(1, second, tmp_path / "store")
    assert f"process {os.getpid()} on" in message
    assert "must not write one folder" in message


def test_an_output_that_cannot_be_made(tmp_path: Path, given: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(UserError, match=r"out cannot be made: Not a directory .*run it again"):
        prepare(Source((tmp_path / "x.txt",)), tmp_path / "x.txt" / "out", SentencePieceEncoder(given))


def test_refused_sources(tmp_path: Path, given: Path) -> None:
    """No text, no file, no such column, several kinds, broken files: each says which."""

    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    empty = file("empty.txt", b"\n\n\n")
    good = file("good.jsonl", b'{"text": "a", "n": 1}\n')
    for tokenizer in (given, None):
        with pytest.raises(UserError, match=r"no text in .*empty\.txt"):
            prepare(Source((empty,)), tmp_path / "out", SentencePieceEncoder(tokenizer))
        with pytest.raises(UserError, match=r"zero\.txt is empty"):
            prepare(Source((file("zero.txt", b""),)), tmp_path / "out", SentencePieceEncoder(tokenizer))
    cases = [
        (lambda: Source((tmp_path / "none.txt",)), r"none\.txt does not exist"),
        (lambda: Source(), "either files or the name"),
        (lambda: Source((good,), dataset="x"), "either files or the name"),
        (lambda: Source((good,), join=0), "join 1 or more"),
        (lambda: list(Source((good,), split="test").batches()), r"cannot read .*good\.jsonl.*test"),
        (lambda: Source((empty, good)), "files of several kinds"),
        (lambda: Source((file("x.doc", b"x"),)), r"x\.doc: the kind is not known"),
        (lambda: list(Source((good,), key="body").batches()), r"no column 'body' \(it has text, n\): give --text-key"),
        (lambda: list(Source((good,), key="n").batches()), "'n' of .* is not text"),
        (lambda: list(Source((file("bad.jsonl", b"{no json"),)).batches()), r"cannot read .*bad\.jsonl"),
        (
            lambda: list(Source((file("none.jsonl.gz", gzip.compress(b"")),)).batches()),
            r"cannot read .*none.*: no row is in it",
        ),
        (lambda: list(Source((file("cut.jsonl.gz", gzip.compress(b"{}" * 99)[:-9]),)).batches()), r"cut\.jsonl\.gz"),
        (lambda: list(Source((file("flip.jsonl.gz", gzip.compress(b"{}")[:12] + b"??"),)).batches()), r"flip\.jsonl"),
        (lambda: list(Source((file("cut.jsonl.xz", lzma.compress(b"{}" * 99)[:-9]),)).batches()), r"cut\.jsonl\.xz"),
        (lambda: list(Source((file("zero.jsonl", b""),)).batches()), r"zero\.jsonl is empty"),
        (lambda: list(Source((file("bad.parquet", b"PAR1"),)).batches()), r"cannot read .*bad\.parquet"),
        (lambda: list(Source((file("latin.txt", b"caf\xe9 \xff"),)).batches()), r"cannot read .*latin\.txt"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
    assert not (tmp_path / "out").exists()


def test_tokenizer_that_does_not_nest(tmp_path: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Scores that are no merge order are found out on the text itself."""
    shuffled = tokenizer.stock_model(tokenizer.size)
    merges = [p for p in shuffled.pieces if len(p.piece) > 1 and p.type == 1]
    for piece in merges:
        piece.score = float(len(piece.piece))  # long pieces first: not how they can be made
    (tmp_path / "odd.model").write_bytes(shuffled.SerializeToString())
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(UserError, match="cannot be grown by merge age"):
        prepare(Source((tmp_path / "x.jsonl",)), tmp_path / "out", SentencePieceEncoder(tmp_path / "odd.model"))
