"""Several corpora in lanes against a slow reference: every document once an epoch, and shares that are kept."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pretrain.checkpoint.schema import Cursor
from pretrain.config import Stage
from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.mixed_lanes import MixedLanes
from pretrain.data.turns import whole
from pretrain.errors import UserError
from pretrain.families.common.text import Feed
from tests.unit.pretrain.data.test_mixture import HELD_OUT, NAMES, SEED, STAGE, folders, opened, stages_of

__all__ = ["folders"]

VOCAB = 800
LENGTH = 48
CURSOR = TypeAdapter[Any](Cursor)
Label = tuple[str, int, int, int]
"""Of a document: source, epoch, position in its permutation, and the number of the token."""


@dataclass(frozen=True)
class Document:
    """Its tokens in a stage's segmentation, and of each how many of the full vocabulary come behind what holds it."""

    tokens: list[int]
    left: list[int]


@cache
def document(folder: str, vocab: int, epoch: int, position: int) -> Document:
    corpus = Corpus.open(folder)
    split, table = Split(corpus.tokens.documents, HELD_OUT, SEED), corpus.tokenizer.segmentation(vocab)
    ids = corpus.read(*corpus.tokens.document_ranges(split.training_documents(epoch, np.array([position]))))
    return Document(table.apply(ids).tolist(), np.repeat(np.arange(len(ids))[::-1], table.lengths[ids]).tolist())


@cache
def training(folder: str) -> int:
    return Split(Corpus.open(folder).tokens.documents, HELD_OUT, SEED).training


@dataclass
class Open:
    """A document that was begun, and what of it was not read."""

    name: str
    epoch: int
    position: int
    text: Document
    at: int = 0

    @property
    def rest(self) -> int:
        return self.text.left[self.at - 1] if self.at else self.text.left[0] + 1


@dataclass
class Slow:
    """The labels of every lane taken one by one, and whatever is due counted from the beginning each time."""

    folders: dict[str, str]
    vocab: int
    begun: Counter[str] = field(default_factory=Counter)
    lanes: list[Open | None] = field(default_factory=list)
    waiting: list[Open] = field(default_factory=list)
    away: dict[str, list[Open]] = field(default_factory=dict)
    read: Counter[str] = field(default_factory=Counter)

    def stage(self, mixture: dict[str, float]) -> None:
        """A stage begins that has these sources."""
        for name in NAMES:
            if name not in mixture:
                here = [*self.waiting, *(lane for lane in self.lanes if lane and lane.rest)]
                self.away.setdefault(name, []).extend(each for each in here if each.name == name)
        self.lanes = [lane if lane and lane.name in mixture else None for lane in self.lanes]
        self.waiting = [each for each in self.waiting if each.name in mixture]
        for name in mixture:
            self.waiting += self.away.pop(name, [])
        self.weights = dict(zip(mixture, whole(list(map(float, mixture.values()))), strict=True))
        self.read.clear()

    def due(self) -> str:
        held = Counter(self.read)
        for each in (*self.waiting, *(lane for lane in self.lanes if lane)):
            held[each.name] += each.rest
        weights = {name: weight for name, weight in self.weights.items() if weight}
        total, all_weights = sum(held[name] for name in weights), sum(weights.values())
        return max(weights, key=lambda name: (weights[name] * total - all_weights * held[name], weights[name]))

    def dealt(self) -> Open:
        if self.waiting:
            return self.waiting.pop(0)
        name = self.due()
        epoch, position = divmod(self.begun[name], training(self.folders[name]))
        self.begun[name] += 1
        return Open(name, epoch, position, document(self.folders[name], self.vocab, epoch, position))

    def step(self, n: int, length: int) -> list[list[Label]]:
        self.waiting += [lane for lane in self.lanes[n:] if lane]
        self.lanes = [*self.lanes[:n], *[None] * (n - len(self.lanes))]
        step = []
        for row in range(n):
            labels: list[Label] = []
            while len(labels) < length:
                lane = self.lanes[row]
                if lane is None or lane.at == len(lane.text.tokens):
                    lane = self.lanes[row] = self.dealt()
                    continue
                labels.append((lane.name, lane.epoch, lane.position, lane.at))
                lane.at += 1
                self.read[lane.name] += 1
            step.append(labels)
        return step


def in_lanes(mixtures: Sequence[Sequence[dict[str, Any]] | str], vocab: int = VOCAB) -> list[Stage]:
    """Stages with a memory that have these corpora, or this one."""
    return [
        replace(
            stage,
            model=replace(stage.model, vocab=vocab),
            train=replace(stage.train, seq_len=LENGTH, memory=LENGTH),
        )
        for stage in stages_of(mixtures)
    ]


def mixture_of(folders: dict[str, str], weights: dict[str, float]) -> list[dict[str, Any]]:
    return [{"corpus": folders[name], "weight": weight} for name, weight in weights.items()]


@settings(max_examples=12, deadline=None)
@given(stages=st.lists(STAGE, min_size=1, max_size=4))
def test_against_a_slow_reference(folders: dict[str, str], stages: list[Any]) -> None:
    """Stages add, drop and weigh sources anew; steps have other batches, other ranks and restarts between them: every
    label is the slow reference's, and so each document comes once an epoch, in lanes that go on where they were."""
    slow, seen, cursor, before = Slow(folders, VOCAB), Counter[Label](), None, dict[int, int]()
    mixtures = [mixture_of(folders, mixture) for mixture, _ in stages]
    for stage, (mixture, steps) in zip(in_lanes(mixtures), stages, strict=True):
        slow.stage(mixture)
        before = {row: token for row, token in before.items() if row < len(slow.lanes) and slow.lanes[row]}
        feeds: list[Feed] = []
        for n, ranks, restart in steps:
            if restart or len(feeds) != ranks:
                feeds = [opened(stage, cursor) for _ in range(ranks)]
                if not restart:  # a checkpoint that is written before the first step says the same
                    feeds = [opened(stage, json.loads(json.dumps(feed.cursor))) for feed in feeds]
            taken = [feed.take(n * ranks, 0.0, rank, ranks) for rank, feed in enumerate(feeds)]
            inputs, labels = (torch.cat([each.samples[key] for each in taken]).tolist() for key in ("inputs", "labels"))
            for row, expected in enumerate(slow.step(n * ranks, LENGTH)):
                seen.update(expected)
                tokens = [document(folders[name], VOCAB, *key).tokens[at] for name, *key, at in expected]
                assert labels[row] == tokens
                if row in before:
                    assert inputs[row][0] == before[row]
            before = {row: tokens[-1] for row, tokens in enumerate(labels)}
            cursor = json.loads(json.dumps(feeds[0].cursor))
            assert all(feed.cursor == cursor for feed in feeds)
            CURSOR.validate_python(cursor)
            total = slow.read.total()
            assert taken[0].shares == {name: slow.read[name] / total for name in mixture}
    assert max(seen.values()) == 1
    left = [
        *slow.waiting,
        *(lane for lane in slow.lanes if lane),
        *(each for away in slow.away.values() for each in away),
    ]
    unread = {
        (each.name, each.epoch, each.position, at) for each in left for at in range(each.at, len(each.text.tokens))
    }
    for name, begun in slow.begun.items():
        for epoch, position in (divmod(number, training(folders[name])) for number in range(begun)):
            text = document(folders[name], VOCAB, epoch, position)
            assert all(
                (name, epoch, position, at) in seen or (name, epoch, position, at) in unread
                for at in range(len(text.tokens))
            )


def deviations(
    text: MixedLanes, weights: Sequence[int], steps: int, lanes: int
) -> Iterator[tuple[float, float, float]]:
    """After each step, in tokens: how far a source is ahead and behind of its part of what was begun, and how far away
    of what was read."""
    total = sum(weights)
    for _ in range(steps):
        text.take(lanes)
        read = np.array([source.turns for source in text.sources], dtype=float)
        held = read + [queue.open for queue in text._queues]
        part = np.array(weights) / total
        away = held - part * held.sum()
        yield away.max(), -away.min(), np.abs(read - part * read.sum()).max()


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_shares(folders: dict[str, str], lanes: int) -> None:
    """At every step no source is ahead of its part by more than a document, nor behind by more than one of each of the
    others, with what is open; without that, no farther than this is: however long a run is."""
    weights, vocab = [5, 2, 1], len(Corpus.open(folders["first"]).tokenizer.piece_bytes)
    (stage,) = in_lanes([mixture_of(folders, dict(zip(NAMES, weights, strict=True)))], vocab)
    feed: Any = opened(stage)
    texts = [Corpus.open(folders[name]).tokens for name in NAMES]
    longest = max(int(text.document_ranges(np.arange(text.documents))[1].max()) for text in texts)
    for ahead, behind, away in deviations(feed._text, weights, 1500 // lanes, lanes):
        assert ahead <= longest
        assert behind <= 2 * longest
        assert away <= (2 + lanes) * longest


def test_sources_that_leave(folders: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """After one epoch and after two: every token of these is a label once, before all have left; lanes read what they
    have begun to its end."""
    epochs = dict(zip(NAMES, (1, 2, 1), strict=True))
    sources = [{"corpus": folders[name], "weight": 1, "leave_after": n} for name, n in epochs.items()]
    (stage,) = in_lanes([sources])
    wanted = Counter[int]()
    for name, n in epochs.items():
        for number in range(n * training(folders[name])):
            wanted.update(document(folders[name], VOCAB, *divmod(number, training(folders[name]))).tokens)
    cursor, given = None, Counter[int]()
    while (wanted - given).total() >= LENGTH:
        feed = opened(stage, cursor)
        given.update(feed.take(1, 0.0, 0, 1).samples["labels"].flatten().tolist())
        cursor = json.loads(json.dumps(feed.cursor))
        assert given <= wanted
    feed = opened(stage, cursor)
    with pytest.raises(UserError, match="all of first, second, third have left"):
        feed.take(4, 0.0, 0, 1)
    assert sum("leaves" in record.getMessage() for record in caplog.records) >= len(NAMES)


def test_after_one_corpus(folders: dict[str, str]) -> None:
    """Lanes of one corpus go on in a stage that has others too, and wait in one that has not."""
    first, second, third = ({"corpus": folders[name], "weight": 1} for name in NAMES)
    alone, mixed, without = in_lanes([folders["first"], [second, first], [second, third]])
    feed = opened(alone)
    last = feed.take(4, 0.0, 0, 1).samples["labels"][:, -1]
    assert torch.equal(opened(mixed, feed.cursor).take(6, 0.0, 0, 1).samples["inputs"][:4, 0], last)
    later = opened(without, feed.cursor)
    assert later.take(4, 0.0, 0, 1).samples["inputs"][:, 0].tolist() == [later.tokenizer.eos] * 4
    assert [len(entry["waiting"]) for entry in later.cursor["sources"]] == [0, 0, 4]
    assert [len(each) for each in later.past(later.cursor, 8)] == [8] * 4
    with pytest.raises(UserError, match="the stage before had several corpora"):
        feed.seek(later.cursor)
