"""Samples of whole documents: every token once an epoch, nothing cut that fits, the same however it is resumed."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import config
from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.packing import best_fit, of_best_fit, of_concatenation, pieces
from pretrain.data.stream.packed import PackedStream, read_documents
from pretrain.data.stream.stream import Position, Stream
from pretrain.estimate import cost
from pretrain.estimate.speed import GPUS
from pretrain.families.text import open_feed
from tools import plan

SEED, VALIDATION = 7, 0.1


def stream(corpus: Corpus, **changes: Any) -> PackedStream:
    options = {"vocab": 800, "seq_len": 24, "seed": SEED, "validation": VALIDATION, "window": 8}
    return PackedStream(corpus, **{**options, **changes})


def documents(corpus: Corpus, vocab: int, epoch: int = 0) -> list[list[int]]:
    """The stage tokens of each training document, in the order of an epoch."""
    split, segmentation = Split(corpus.tokens.documents, VALIDATION, SEED), corpus.tokenizer.segmentation(vocab)
    order = split.training_documents(epoch, np.arange(split.training))
    ranges = zip(*corpus.tokens.document_ranges(order), strict=True)
    return [segmentation.apply(corpus.read(np.array([a]), np.array([n]))).tolist() for a, n in ranges]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_best_fit_is_best_fit(sizes: list[int]) -> None:
    """Against a slow one, which looks at every sample."""
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [n for n, room in enumerate(left) if room >= size]
        if fitting:
            best = min(left[n] for n in fitting)
            left[next(n for n in fitting if left[n] == best)] -= size
        else:
            left.append(12 - size)
    samples = best_fit(np.array(sizes), 12)
    filled = np.bincount(samples, weights=sizes)
    assert filled.max() <= 12
    assert sorted(12 - filled) == sorted(left)


@settings(max_examples=8, deadline=None)
@given(vocab=st.sampled_from([400, 800, 1200]), seq_len=st.integers(6, 200), window=st.integers(1, 40))
def test_every_token_once_an_epoch(corpus: Corpus, vocab: int, seq_len: int, window: int) -> None:
    """Every token of every document is a label once, after the one before it or the eos; a document that fits is whole,
    and of a longer one all pieces but the last are whole samples."""
    expected = documents(corpus, vocab)
    eos = corpus.tokenizer.eos
    text = stream(corpus, vocab=vocab, seq_len=seq_len, window=window)
    found: Counter[tuple[int, ...]] = Counter()  # pieces with their first input
    size = 0
    while text.cursor["epoch"] == 0:
        batch = text.take(1)
        (cuts,) = np.nonzero(batch.begins[0])
        assert cuts[0] == 0
        assert not batch.mask[0].any() or batch.mask[0, 0]
        for start, stop in zip(cuts, [*cuts[1:], seq_len], strict=True):
            assert len({*batch.mask[0, start:stop].tolist()}) == 1
            if not batch.mask[0, start]:
                assert {*batch.inputs[0, start:].tolist(), *batch.labels[0, start:].tolist()} == {eos}
                continue
            piece = (batch.inputs[0, start].item(), *batch.labels[0, start:stop].tolist())
            assert batch.inputs[0, start + 1 : stop].tolist() == list(piece[1:-1])
            found[piece] += 1
        size += int(batch.bytes.sum())
    wanted: Counter[tuple[int, ...]] = Counter()
    for document in expected:
        whole = (eos, *document)
        wanted.update(whole[at : at + seq_len + 1] for at in range(0, len(document), seq_len))
    assert found == wanted
    raw = corpus.tokenizer.piece_bytes[[t for d in expected for t in d]].sum()
    assert size == raw - len(expected) * corpus.tokenizer.prefix_bytes


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.integers(0, 30), min_size=1, max_size=8), window=st.integers(1, 12))
def test_resumed_at_random_places(corpus: Corpus, parts: list[int], window: int) -> None:
    whole = stream(corpus, window=window).take(sum(parts))
    done, cursor = 0, None
    for n in parts:
        part = stream(corpus, window=window, cursor=cursor)
        batch = part.take(n)
        for name in ("inputs", "labels", "mask", "begins", "bytes"):
            assert np.array_equal(getattr(batch, name), getattr(whole, name)[done : done + n])
        cursor = json.loads(json.dumps(part.cursor))
        done += n


def test_goes_on_where_another_packing_ended(corpus: Corpus) -> None:
    """Behind the parent's window, in the middle of the document that it cut; and back, at a document's beginning."""
    parent = Stream(corpus, vocab=800, seq_len=24, seed=SEED, validation=VALIDATION, window=8)
    parent.take(3)
    place = parent.cursor["next"]
    child = stream(corpus, cursor=parent.cursor)
    child.take(1)
    assert {key: child.cursor[key] for key in place} == place
    split = Split(corpus.tokens.documents, VALIDATION, SEED)
    text = read_documents(corpus, split, 800, Position(**place), 200)
    rest = documents(corpus, 800)[place["document"]]
    first = text.tokens[: text.inputs[0] + 1].tolist()
    assert first == rest[len(rest) - len(first) :]
    back = Stream(corpus, vocab=800, seq_len=24, seed=SEED, validation=VALIDATION, window=8, cursor=child.cursor)
    assert {key: back.cursor[key] for key in place} == child.cursor["next"]


def test_the_plan_knows_what_is_read(corpus_path: Path, tmp_path: Path) -> None:
    """Padding and what a token sees, of the samples of the first window; FLOPs fall with it."""
    (tmp_path / "plan.yaml").write_text(
        f"{{name: plan, data: {{corpus: {corpus_path}, window: 64, packing: best_fit, reset_attention: true}},"
        " model: {vocab: 800, hidden: 32, heads: 4, ffn: 64, layers: 1},"
        " train: {seq_len: 128, global_batch: 8, lr: 1e-3, tokens: 1e6}, stages: [{name: one}]}"
    )
    curriculum = config.load(tmp_path / "plan.yaml")
    (found,) = cost.of_curriculum(curriculum, gpu=GPUS["a100-80gb"])
    (stage,) = curriculum.stages
    whole = replace(stage, data=replace(stage.data, reset_attention=False))
    feed = open_feed(stage)
    feed.seek(None)
    rest = feed._text.ready()  # of the first window
    taken = feed.take(rest, 0.0, 0, 1)
    packed = found.packings["best_fit"]
    assert taken.labels is not None
    assert packed.padding == pytest.approx(1 - taken.labels / (rest * 128))
    assert packed.seen == pytest.approx(taken.seen)
    assert found.flops < cost.of_stage(whole, None, gpu=GPUS["a100-80gb"]).flops
    assert found.packings["concatenate"].truncations > packed.truncations > 0
    assert plan.main([str(tmp_path / "plan.yaml")]) == 0


def test_what_becomes_of_documents() -> None:
    sizes = np.array([3, 5, 4, 9, 3])
    assert [x.tolist() for x in pieces(sizes, 4)] == [[0, 1, 1, 2, 3, 3, 3, 4], [3, 4, 1, 4, 4, 4, 1, 3]]
    packed, laid = of_best_fit(sizes, 4), of_concatenation(sizes, 4)
    assert packed.truncations == pytest.approx(1e6 * 3 / 24)
    assert packed.padding == 0
    assert packed.seen == (9 + 16 + 1 + 16 + 16 + 16 + 1 + 9) / 24
    # cuts at 4, 16, 20; those at 8, 12 and 24: 8 is the end of the second document, 12 of the third, 24 of the last
    assert laid.truncations == pytest.approx(1e6 * 3 / 24)
    assert laid.seen == (9 + 1 + 16 + 16 + 16 + 16 + 1 + 9) / 24
    assert of_best_fit(np.array([3, 3]), 4) == of_best_fit(np.array([3]), 4)
