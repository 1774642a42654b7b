"""BERT's samples, on a corpus whose every token says which document and which place it is from."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import config
from pretrain.data.corpus.corpus import Corpus
from pretrain.data.corpus.encoders import WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.tokenizers.wordpiece import SPECIALS
from pretrain.errors import UserError
from pretrain.families.bert.masking import Masking
from pretrain.families.bert.stream import BertBatch, BertCorpus, BertStream, Place
from pretrain.families.bert.text import BertFeed

DOCUMENTS, LONGEST = 40, 400  # of documents in words
OPTIONS = {"vocab": 1000, "seq_len": 32, "seed": 3, "validation": 0.1}


def word(document: int, place: int) -> str:
    """A word of one or two pieces that only occurs there."""
    number = document * LONGEST + place
    return f"w{number // 128}x{number % 128}"


@pytest.fixture(scope="module")
def sizes() -> list[list[int]]:
    """The sentences of each document in words; some documents have one sentence, one has a very long one."""
    draw = np.random.default_rng(0)
    sizes = [draw.integers(1, 12, size=draw.integers(2, 60)).tolist() for _ in range(DOCUMENTS)]
    sizes[5], sizes[6], sizes[7] = [9], [1, 1], [3, 150, 2, 2]
    return sizes


@pytest.fixture(scope="module")
def path(sizes: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    heads = [f"w{n}" for n in range(DOCUMENTS * LONGEST // 128 + 1)]
    tails = [f"##x{n}" for n in range(128)]
    ascii_pieces = [f"{mark}{c}" for mark in ("", "##") for c in "wx0123456789."]
    vocabulary = [*SPECIALS, *ascii_pieces, *heads, *tails, *(f"[unused{n}]" for n in range(1000))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    with open(folder / "texts.jsonl", "w") as file:
        for document, lengths in enumerate(sizes):
            place = 0
            lines = []
            for length in lengths:
                lines.append(" ".join(word(document, place + k) for k in range(length)))
                place += length
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")
    prepare(Source((folder / "texts.jsonl",)), folder / "corpus", WordPieceEncoder(folder / "vocab.txt"))
    return folder / "corpus"


@pytest.fixture(scope="module")
def bert(path: Path) -> BertCorpus:
    return BertCorpus.open(path)


def stream(bert: BertCorpus, **changes: object) -> BertStream:
    return BertStream(bert, **{**OPTIONS, "window": 20, **changes})


def segments(bert: BertCorpus, batch: BertBatch) -> Iterator[tuple[list[int], list[int]]]:
    """A and B of each sample as numbers of words (document * LONGEST + place); half a word is left out."""
    tokenizer = bert.tokenizer
    for labels, types, real in zip(batch.labels, batch.token_types, batch.attention_mask, strict=True):
        pieces = [tokenizer.pieces[i] for i in labels[real]]
        first, second = (i for i, piece in enumerate(pieces) if piece == "[SEP]")
        assert (pieces[0], second) == ("[CLS]", len(pieces) - 1)
        assert types.tolist() == [0] * (first + 1) + [1] * (second - first) + [0] * (len(labels) - second - 1)
        assert (labels[~real] == tokenizer.pad).all()
        words = [
            [128 * int(head[1:]) + int(tail[3:]) for head, tail in itertools.pairwise(part) if tail.startswith("##")]
            for part in (pieces[1:first], pieces[first + 1 : second])
        ]
        yield words[0], words[1]


def test_pairs(bert: BertCorpus) -> None:
    """Segments are consecutive words; a next B follows A in its document, another B is of another document."""
    batch = stream(bert).take(2000)
    for (a, b), not_next in zip(segments(bert, batch), batch.next_sentence, strict=True):
        for segment in (a, b):
            assert segment == list(range(segment[0], segment[0] + len(segment))) if segment else True
        if a and b:
            assert (a[0] // LONGEST != b[0] // LONGEST) == bool(not_next)
            assert not_next or b[0] > a[-1]


def test_sentence_order(bert: BertCorpus) -> None:
    """With sop both are of one document, in half of the samples swapped."""
    batch = stream(bert, pairs="sop").take(2000)
    for (a, b), swapped in zip(segments(bert, batch), batch.next_sentence, strict=True):
        if a and b:
            assert a[0] // LONGEST == b[0] // LONGEST
            assert (b[0] > a[0]) != bool(swapped)
    assert abs(batch.next_sentence.mean() - 0.5) < 3 * 0.5 / np.sqrt(2000)


def test_statistics(bert: BertCorpus) -> None:
    """100,000 samples: masking rate, 80/10/10 and next sentences within 3 sigma; replacements among the stage's ids."""
    source = stream(bert, vocab=200, seq_len=24, window=4096)
    tokenizer = bert.tokenizer
    n, excess, spread, masked, kept, replaced, chosen, not_next, largest = 0, 0.0, 0.0, 0, 0, 0, 0, 0, 0
    while n < 100_000:
        batch = source.take(10_000)
        text = ~np.isin(batch.labels, [tokenizer.pad, tokenizer.cls, tokenizer.sep])
        predicted, seen = batch.loss_mask, batch.tokens
        assert not (predicted & ~text).any()
        assert np.array_equal(seen[~predicted], batch.labels[~predicted])
        off = predicted.sum(axis=1) - 0.15 * text.sum(axis=1)
        excess, spread = excess + off.sum(), spread + (off**2).sum()
        same, mask = seen[predicted] == batch.labels[predicted], seen[predicted] == tokenizer.mask
        random = seen[predicted][~same & ~mask]
        assert random.min() >= len(SPECIALS)
        largest = max(largest, int(random.max()))
        masked, kept, replaced = masked + mask.sum(), kept + same.sum(), replaced + len(random)
        chosen, not_next, n = chosen + predicted.sum(), not_next + batch.next_sentence.sum(), n + 10_000
    assert largest == 199  # every active id, and none beyond
    assert abs(excess) < 3 * np.sqrt(spread)
    by_chance = 0.1 / (200 - len(SPECIALS))  # a random replacement may be the token itself
    for count, share in ((masked, 0.8), (kept, 0.1 + by_chance), (replaced, 0.1 - by_chance)):
        assert abs(count - share * chosen) < 3 * np.sqrt(chosen * share * (1 - share))
    assert abs(not_next - n / 2) < 3 * np.sqrt(n / 4)


def test_never_unused(bert: BertCorpus) -> None:
    """With the full vocabulary, pieces that no text has are no replacements either."""
    batch = stream(bert, vocab=bert.tokenizer.size, masking=Masking(mask=0, random=1)).take(3000)
    assert batch.tokens.max() == bert.tokenizer.used - 1


def test_whole_words(bert: BertCorpus) -> None:
    """Continuations are predicted with their words, unless words do not matter."""
    batch = stream(bert, masking=Masking(rate=0.3)).take(1000)
    inside = bert.tokenizer.continues[batch.labels[:, 1:]] & (batch.labels[:, :-1] > len(SPECIALS) - 1)
    together = batch.loss_mask[:, 1:] == batch.loss_mask[:, :-1]
    assert inside.any()
    assert together[inside].all()
    apart = stream(bert, masking=Masking(rate=0.3, whole_words=False)).take(1000).loss_mask
    assert not (apart[:, 1:] == apart[:, :-1])[inside].all()


def epoch(bert: BertCorpus, window: int, **changes: object) -> list[tuple[int, ...]]:
    """All samples of the first epoch, sorted."""
    source, place = stream(bert, window=window, **changes), Place()
    samples: list[tuple[int, ...]] = []
    while place.epoch == 0:
        read = source.read(place, window)
        samples += [tuple(row) for row in source.samples(read, np.arange(len(read))).labels]
        place = read.end
    return sorted(samples)


@pytest.mark.parametrize("pairs", ["nsp", "sop"])
def test_windows_do_not_show(bert: BertCorpus, pairs: str) -> None:
    """An epoch's samples are the same however it is cut into windows, in the middle of documents too."""
    assert (
        epoch(bert, pairs=pairs, window=1)
        == epoch(bert, pairs=pairs, window=7)
        == epoch(bert, pairs=pairs, window=10**6)
    )


def test_no_text_left_out(bert: BertCorpus, sizes: list[list[int]]) -> None:
    """The ranges of an epoch's samples are all text of the documents with two sentences, each place once."""
    source = stream(bert, pairs="sop", window=10**6)
    window = source.read(Place(), 10**6)
    assert window.end.epoch == 1
    drawn = np.concatenate([window.tokens[a:stop] for a, stop in zip(window.a, window.stop, strict=True)])
    documents = source.split.training_documents(0, np.arange(source.split.training))
    useful = [d for d in documents if len(sizes[d]) > 1]
    assert len(useful) < len(documents)
    assert np.array_equal(drawn, bert.read(*bert.tokens.document_ranges(np.array(useful))))


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(0, 60), min_size=1, max_size=6), ranks=st.integers(1, 3))
def test_resumed_and_split(bert: BertCorpus, parts: list[int], ranks: int) -> None:
    """However calls, restarts and ranks split it, the samples are bit for bit the same."""
    whole = stream(bert).take(sum(parts))
    done, cursor = 0, None
    for n in parts:
        streams = [stream(bert, cursor=cursor) for _ in range(ranks)]
        for rank, mine in enumerate(streams):
            batch = mine.take(n, rows=slice(rank, None, ranks))
            for name in vars(batch):
                assert np.array_equal(getattr(batch, name), getattr(whole, name)[done : done + n][rank::ranks])
        cursor = json.loads(json.dumps(streams[0].cursor))
        done += n


def test_next_stage(bert: BertCorpus) -> None:
    """Longer sequences and more pieces go on behind the parent's window; so does the schedule of masking, anywhere."""
    parent = stream(bert, vocab=100)
    parent.take(25)
    child = stream(bert, vocab=1000, seq_len=64, cursor=parent.cursor)
    following = parent.cursor["next"]
    assert {key: child.cursor[key] for key in following} == following
    one, other = stream(bert), stream(bert)
    other.masking = Masking(rate=0.5)
    assert np.array_equal(one.take(30).labels, other.take(30).labels)
    assert one.cursor == other.cursor


def test_stage_spells_the_full_vocabulary(bert: BertCorpus) -> None:
    """The same sentences in fewer pieces: what a stage reads is the full encoding, decomposed."""
    full, stage = (stream(bert, vocab=v, seq_len=4096, window=1, pairs="sop").read(Place(), 1) for v in (1000, 60))
    table = bert.tokenizer.segmentation(60)
    assert np.array_equal(table.apply(full.tokens), stage.tokens)


def test_held_out(bert: BertCorpus) -> None:
    """Validation samples are of the held-out documents, B too; training samples never are."""
    held_out = set(stream(bert).split.validation_documents().tolist())
    for source, inside in ((stream(bert, held_out=True), True), (stream(bert), False)):
        for a, b in segments(bert, source.take(300)):
            assert all((w // LONGEST in held_out) == inside for w in a + b)


def test_refused(bert: BertCorpus, path: Path, corpus_path: Path, tmp_path: Path) -> None:
    """Corpora of the other kind, too few documents, documents without sentences."""
    with pytest.raises(UserError, match="corpus of sentences for BERT"):
        Corpus.open(path)
    with pytest.raises(UserError, match="no corpus of sentences"):
        BertCorpus.open(corpus_path)
    with pytest.raises(UserError, match="1 document to read here"):
        stream(bert, held_out=True, validation=0.02)
    with pytest.raises(UserError, match="no room for two segments"):
        stream(bert, seq_len=4)
    (tmp_path / "x.txt").write_text("w1\n\nw2\n\nw3\n\nw4")
    prepare(Source((tmp_path / "x.txt",)), tmp_path / "flat", WordPieceEncoder(path / "tokenizer" / "vocab.txt"))
    with pytest.raises(UserError, match="too few documents of two or more sentences"):
        stream(BertCorpus.open(tmp_path / "flat"), validation=0.25)


@pytest.mark.parametrize("rate", [1e-9, 0.15, 1.0])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_what_is_measured_has_a_masked_token(path: Path, rate: float, n: int) -> None:
    """Of a probe or a batch in which nothing is masked there would be no loss, and of held-out text no mean."""
    stage = config.stage_from(
        {
            "name": "a",
            "seed": 3,
            "data": {"corpus": str(path), "validation_fraction": 0.1, "mask_rate": rate},
            "model": {"family": "bert", "vocab": 1000, "hidden": 8, "layers": 1, "heads": 1, "ffn": 8},
            "train": {"seq_len": 32, "global_batch": 8, "lr": 1e-3, "tokens": 256, "eval_bytes": 128 * n},
            **{section: {} for section in ("parallel", "grow", "checkpoint", "guard", "log")},
        },
        "here",
    )
    for key, value in (("reset_attention", True), ("packing", "best_fit")):
        with pytest.raises(UserError, match=f"data.{key}: {value}, but samples of bert are pairs of segments"):
            BertFeed.check(replace(stage, data=replace(stage.data, **{key: value})))
    writing = replace(stage.log, samples=replace(stage.log.samples, prompt="a word"))
    with pytest.raises(UserError, match=r"log\.samples\.prompt: a bert fills gaps"):
        BertFeed.check(replace(stage, log=writing))
    feed = BertFeed(stage, BertCorpus.open(path))
    for found in (feed.probe(n, 1000, 16), feed.batch(n)):
        assert found["mask"].any()
        assert not (found["mask"].bool() & (found["valid"] == 0)).any()
    if rate < 0.1:
        with pytest.raises(
            UserError, match=rf"train\.eval_bytes: {128 * n} bytes .* come to {n} x 32 tokens, .* raise either"
        ):
            feed.held_out(4)
    elif n > 1:
        assert feed.held_out(4).samples["mask"].any()
