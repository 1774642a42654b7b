"""Lanes of consecutive text against a slow reference: every token a label once an epoch, however they are resumed."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.curriculum import curriculum_of
from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.documents import OPENS, seen
from pretrain.data.stream.lanes import LaneStream
from pretrain.data.stream.packed import PackedStream
from pretrain.data.stream.stream import Stream
from pretrain.families.text import open_feed

SEED, VALIDATION, VOCAB = 7, 0.1, 800
Label = tuple[int, int, int]
"""Of a document: epoch, position in its permutation, and the number of the token."""


def lanes(corpus: Corpus, cursor: Mapping[str, object] | None = None, **changes: int) -> LaneStream:
    options = {"vocab": VOCAB, "seq_len": 16, **changes}
    return LaneStream(corpus, seed=SEED, validation=VALIDATION, cursor=cursor, **options)


class Spelled(dict[tuple[int, int], list[int]]):
    """The tokens of documents, by epoch and position."""

    def __repr__(self) -> str:
        return "Spelled()"  # hypothesis would print all of it


@pytest.fixture(scope="module")
def spelled(corpus: Corpus) -> Spelled:
    """Three epochs."""
    split, table = Split(corpus.tokens.documents, VALIDATION, SEED), corpus.tokenizer.segmentation(VOCAB)
    documents = Spelled()
    for epoch in range(3):
        for position in range(split.training):
            number = split.training_documents(epoch, np.array([position]))
            documents[epoch, position] = table.apply(corpus.read(*corpus.tokens.document_ranges(number))).tolist()
    return documents


def slowly(spelled: Spelled, steps: list[tuple[int, int]]) -> Iterator[list[list[Label]]]:
    """The labels of every lane in each step, (lanes, length), taken one by one off one queue."""
    queue = [[(*key, number) for number in range(len(tokens))] for key, tokens in spelled.items()]
    reading: list[list[Label]] = []
    waiting: list[list[Label]] = []
    for n, length in steps:
        waiting, reading = waiting + reading[n:], reading[:n]
        step = []
        for row in range(n):
            if row == len(reading):
                reading.append([])
            labels: list[Label] = []
            while len(labels) < length:
                while not reading[row]:
                    reading[row] = (waiting or queue).pop(0)
                labels.append(reading[row].pop(0))
            step.append(labels)
        yield step


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 5, 16, 40])), min_size=1, max_size=25),
    resumed=st.sets(st.integers(0, 24)),
)
def test_against_a_slow_reference(
    corpus: Corpus, spelled: Spelled, steps: list[tuple[int, int]], resumed: set[int]
) -> None:
    """Any numbers of lanes and lengths of samples, one after the other, resumed anywhere: lanes go on where they were,
    first inputs are what was before, and bytes are those of the labels."""
    stream, before = lanes(corpus), dict[int, Label]()
    for number, ((n, length), expected) in enumerate(zip(steps, slowly(spelled, steps), strict=True)):
        if number in resumed or length != stream.seq_len:
            stream = lanes(corpus, json.loads(json.dumps(stream.cursor)), seq_len=length)
        batch = stream.take(n)
        before = {row: label for row, label in before.items() if row < n}
        for row, labels in enumerate(expected):
            assert batch.tokens[row, 1:].tolist() == [spelled[e, d][t] for e, d, t in labels]
            if row in before:
                epoch, document, token = before[row]
                assert batch.tokens[row, 0] == spelled[epoch, document][token]
            before[row] = labels[-1]
        sizes = corpus.tokenizer.piece_bytes[batch.tokens[:, 1:]].sum(1)
        firsts = [sum(token == 0 for *_, token in labels) for labels in expected]
        assert batch.bytes.tolist() == (sizes - corpus.tokenizer.prefix_bytes * np.array(firsts)).tolist()


def test_every_token_once_an_epoch(corpus: Corpus, spelled: Spelled) -> None:
    """Of a whole epoch, over a ramp of the batch up and down: each token is a label once."""
    sizes, total = [2, 4, 8, 4, 8, 1], sum(len(t) for (epoch, _), t in spelled.items() if epoch == 0)
    steps = [(sizes[n * 97 % len(sizes)], 16) for n in range(total // 50)]
    stream, seen = lanes(corpus), Counter[Label]()
    for (n, _), expected in zip(steps, slowly(spelled, steps), strict=True):
        batch = stream.take(n)
        for row, labels in enumerate(expected):
            assert batch.tokens[row, 1:].tolist() == [spelled[e, d][t] for e, d, t in labels]
            seen.update(labels)
    open_places = [tuple(place) for place in (*stream.cursor["lanes"], *stream.cursor["waiting"])]
    reached = {place[:2] for place in open_places}
    finished = {key for key in spelled if key < (stream.cursor["epoch"], stream.cursor["document"])} - reached
    assert max(seen.values()) == 1
    assert all(seen[*key, token] for key in finished for token in range(len(spelled[key])))
    assert {key for key in finished if key[0] == 0} | {key for key in reached if key[0] == 0} == {
        key for key in spelled if key[0] == 0
    }


@pytest.mark.parametrize("kind", [Stream, PackedStream])
def test_behind_a_stage_without_lanes(corpus: Corpus, spelled: Spelled, kind: type[Stream | PackedStream]) -> None:
    """Lanes go on where the parent's window ends, and begin the documents behind it; so does a stage behind lanes."""
    how = {"vocab": VOCAB, "seq_len": 16, "seed": SEED, "validation": VALIDATION, "window": 8}
    parent = kind(corpus, **how)
    parent.take(8)
    cursor = parent.cursor
    child = lanes(corpus, cursor)
    first = child.take(3).tokens
    document = spelled[cursor["epoch"], cursor["document"]]
    text = [*document, *spelled[cursor["epoch"], cursor["document"] + 1], *spelled[0, cursor["document"] + 2]]
    begun = kind is Stream or cursor["token"]
    after = first[0].tolist()
    places = [n for n in range(len(document)) if text[n : n + len(after) - 1] == after[1:]]
    assert places
    assert (places[0] > 0) == bool(begun)
    later = kind(corpus, **how, cursor=child.cursor)
    assert (later.cursor["epoch"], later.cursor["document"]) == (child.cursor["epoch"], child.cursor["document"])


@pytest.mark.parametrize("vocab", [512, 1200])
def test_what_lanes_have_read(corpus: Corpus, vocab: int) -> None:
    """The text of each lane before its next input, of its document alone; also in another segmentation."""
    stream = lanes(corpus, vocab=vocab)
    for _ in range(5):
        stream.take(4)
    table, texts, places = corpus.tokenizer.segmentation(vocab), stream.past(40), stream.cursor["lanes"]
    assert sorted(map(len, texts))[-1] == 40 > len(min(texts, key=len))
    for text, (epoch, position, *_), first in zip(texts, places, stream.take(4).tokens[:, 0], strict=True):
        number = stream.split.training_documents(epoch, np.array([position]))
        document = table.apply(corpus.read(*corpus.tokens.document_ranges(number))).tolist()
        joined = [*text.tolist(), int(first)]
        at = [at for at in range(len(document)) if document[at : at + len(joined)] == joined]
        assert at
        assert len(text) == 40 or 0 in at


def test_another_vocabulary_repeats_no_label(corpus: Corpus) -> None:
    """A stage with more pieces goes on in each lane where the one before has ended, or inside that token's bytes."""
    parent = lanes(corpus, vocab=512)
    for _ in range(3):
        parent.take(4)
    places = parent.cursor["lanes"]
    child = lanes(corpus, parent.cursor, vocab=1200)
    assert [place[:3] for place in child.cursor["lanes"]] == [place[:3] for place in places]
    batch = child.take(4)
    for (epoch, position, token, _), row in zip(places, batch.tokens.tolist(), strict=True):
        number = child.split.training_documents(epoch, np.array([position]))
        ids = corpus.read(*corpus.tokens.document_ranges(number)).tolist()
        rest = ids[token:][: len(row)]
        assert row[: len(rest)] == rest


def test_documents_apart(corpus_path: Path) -> None:
    """Samples that go on say so, in training as in validation; those of certificates lie behind what is remembered."""
    stage = curriculum_of(
        {
            "name": "x",
            "data": {"corpus": str(corpus_path), "validation_fraction": VALIDATION, "reset_attention": True},
            "model": {"vocab": VOCAB, "hidden": 32, "layers": 1, "heads": 2, "ffn": 32},
            "train": {"seq_len": 16, "global_batch": 4, "lr": 1e-3, "tokens": 640, "memory": 32, "eval_bytes": 300},
            "stages": [{"name": "x"}],
        },
        Path("x.yaml"),
    ).stages[0]
    feed = open_feed(stage)
    feed.seek(None)
    eos = feed.tokenizer.eos
    steps = [feed.take(4, 0.0, 0, 1) for _ in range(40)]
    assert steps[0].samples[OPENS].tolist() == [True] * 4
    assert 0 < sum(step.samples[OPENS].sum() for step in steps[1:]) < 39 * 4
    for step in steps:
        assert step.samples[OPENS].tolist() == (step.samples["inputs"][:, 0] == eos).tolist()
        assert step.seen == pytest.approx(3 * (seen(step.samples) or 0))
    held_out = feed.held_out(4).samples
    assert held_out[OPENS][0]
    assert not held_out[OPENS].all()
    assert OPENS not in feed.probe(2, VOCAB, 16)
