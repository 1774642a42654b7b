"""A byte-level BPE of others: its ids as they are, bytes of text, a corpus of it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.stream.stream import Stream
from pretrain.data.stream.validation import validation_set
from pretrain.data.tokenizers.byte_level import ByteLevel
from pretrain.errors import UserError
from tools.prepare_data import main as prepare_data

TEXTS = [
    "the cat — naïve, 猫 — sat on the mat\n",
    "a second text with <|end|> in it",
    "x" * 300,
    "the end 🙂 of it all",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a model's folder has it."""
    path = tmp_path_factory.mktemp("byte-level")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS * 3, trainer)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    return path


def test_ids_and_bytes(folder: Path) -> None:
    ours, theirs = ByteLevel.load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs.decode(ids, skip_special_tokens=False) == text
        assert ours.piece_bytes[ids].sum() == len(text.encode())
        if "<|end|>" not in text:
            assert ids == theirs.encode(text).ids
        assert ours.eos not in ids  # its name in a text is text
    assert ours.piece_bytes[ours.eos] == 0
    assert ours.segmentation(ours.size + 20).apply(np.arange(ours.size)).tolist() == list(range(ours.size))


def test_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    first = ByteLevel.load(folder)
    first.save(tmp_path)
    assert ByteLevel.load(tmp_path).hash == ByteLevel.load(folder / "tokenizer.json").hash == first.hash
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [first.eos]}))
    assert ByteLevel.load(tmp_path).hash == first.hash
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert ByteLevel.load(tmp_path).hash != first.hash


def test_a_corpus(folder: Path, tmp_path: Path) -> None:
    """Every byte of the text is a target once, in training and in validation."""
    rows = [f"{text} {i}" for i in range(10) for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    given = [str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "data"), "--tokenizer", str(folder)]
    assert prepare_data(given) == 0
    corpus = Corpus.open(tmp_path / "data")
    size = sum(len(row.encode()) for row in rows)
    assert corpus.description["bytes"] == size
    assert corpus.tokenizer.hash == ByteLevel.load(folder).hash
    where: dict[str, Any] = {"vocab": 310, "seq_len": 16, "seed": 1, "validation": 0.1}
    held_out = validation_set(corpus, **where)
    stream, found = Stream(corpus, **where), 0
    while stream.cursor["epoch"] == 0:
        found += int(stream.take(1).bytes.sum())
    assert held_out.bytes > 0
    assert size - held_out.bytes - 1000 < found  # the window goes over into the next epoch
    with pytest.raises(UserError, match=r"a vocabulary of 200 is not possible .*byte-level tokenizer is not cut"):
        Stream(corpus, **{**where, "vocab": 200})


def test_a_corpus_by_age(folder: Path, tmp_path: Path) -> None:
    """A stage may have the first pieces of a tokenizer whose special ones were behind its merges; a model of that size
    goes out with the tokenizer of these pieces."""
    behind = json.loads((folder / "tokenizer.json").read_text())
    pieces = sorted(behind["model"]["vocab"], key=behind["model"]["vocab"].__getitem__)[1:]
    behind["model"]["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    behind["added_tokens"][0]["id"] = len(pieces)
    (tmp_path / "tokenizer.json").write_text(json.dumps(behind))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"{t} {i}"}) + "\n" for t in TEXTS for i in "abc"))
    given = [str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "data"), "--tokenizer", str(tmp_path)]
    with pytest.raises(UserError, match=r"number its pieces by age, with tools/prepare_data\.py --by-age"):
        ByteLevel.load(tmp_path).legal(280)
    assert prepare_data([*given, "--by-age"]) == 0
    corpus = Corpus.open(tmp_path / "data")
    tokenizer = corpus.tokenizer
    assert isinstance(tokenizer, ByteLevel)
    assert (tokenizer.eos, tokenizer.size) == (0, 300)
    where: dict[str, Any] = {"seq_len": 16, "seed": 1, "validation": 0.2}
    assert len({validation_set(corpus, vocab=vocab, **where).bytes for vocab in (260, 300)}) == 1
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        tokenizer.save(tmp_path / "small", 260)
        small = ByteLevel.load(tmp_path / "small")
        assert small.encode_batch([text])[0] == tokenizer.segmentation(260).apply(np.array(ids)).tolist()
    assert small.size == 260
    news = tokenizer.new_pieces(260, 264)
    assert len(news) == 4
    assert max(map(max, news)) < 260


def test_refused(folder: Path, tmp_path: Path) -> None:
    def error(change: dict[str, Any], config: str = '{"eos_token": "<|end|>"}') -> str:
        found = json.loads((folder / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**found, **change}))
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(UserError) as raised:
            ByteLevel.load(tmp_path)
        return str(raised.value)

    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert "puts a space before" in error({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level]}})
    assert "not of bytes" in error({"decoder": {"type": "ByteFallback"}})
    assert "no end-of-text piece '</s>'" in error({}, '{"eos_token": "</s>"}')
    assert "no file says which piece ends a text" in error({}, "{}")
    assert "is no tokenizer.json" in error({"model": {"type": "Nothing"}})
    with pytest.raises(UserError, match="cannot grow"):
        ByteLevel.load(folder).new_pieces(300, 310)
