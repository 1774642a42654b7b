"""Mixtures against the text itself: whatever stages, restarts and ranks, every source goes on where it was."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Stage
from pretrain.config.curriculum import curriculum_of
from pretrain.config.mixtures import CorpusShare
from pretrain.data import documents
from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.corpus.encoders import SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.stream.stream import Stream
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.turns import whole
from pretrain.errors import UserError
from pretrain.families.common.mixture import MixedFeed
from pretrain.families.common.text import CausalFeed, Feed
from pretrain.families.text import in_tokens, open_feed
from tests.unit.pretrain.data.test_turns import slow

SEED, HELD_OUT, LENGTH, VOCAB = 7, 0.1, 8, 800
NAMES = ("first", "second", "third")
CORPUS = cache(Corpus.open)
MODEL = {"vocab": VOCAB, "hidden": 32, "layers": 1, "heads": 2, "head_dim": 16, "ffn": 32}


@pytest.fixture(scope="module")
def folders(texts: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three corpora of one tokenizer, of 11 to 25 documents."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer.save(folder / "given")
    for name, part in zip(NAMES, (slice(0, 11), slice(11, 26), slice(31, 56)), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[part]))
        prepare(Source((folder / f"{name}.jsonl",)), folder / name, SentencePieceEncoder(folder / "given"))
    return {name: str(folder / name) for name in NAMES}


@cache
def base() -> Stage:
    """A stage of any text."""
    raw = {
        "name": "x",
        "seed": SEED,
        "data": {"validation_fraction": HELD_OUT, "corpus": "none"},
        "model": MODEL,
        "train": {"seq_len": LENGTH, "global_batch": 1, "lr": 1e-3, "tokens": 8000, "eval_bytes": 300},
        "stages": [{"name": "x"}],
    }
    return curriculum_of(raw, Path("x.yaml")).stages[0]


def stages_of(mixtures: Sequence[Sequence[dict[str, Any]] | str], window: int = 4) -> list[Stage]:
    """Stages that have these corpora, or this one."""
    data = replace(base().data, window=window)
    texts = [
        data.only(one)
        if isinstance(one, str)
        else replace(data, corpus="", corpora=tuple(CorpusShare(**s) for s in one))
        for one in mixtures
    ]
    return [replace(base(), name=f"stage-{number}", data=text) for number, text in enumerate(texts)]


def opened(stage: Stage, cursor: Any = None) -> Feed:
    """The text of a stage, as `open_feed` gives it, of corpora that are open already."""
    data = stage.data
    if data.corpus:
        feed: Feed = CausalFeed(stage, CORPUS(data.corpus))
    else:
        feed = MixedFeed(stage, [CausalFeed(stage, CORPUS(source.corpus)) for source in data.corpora])
    feed.seek(cursor)
    return feed


@cache
def text_of(folder: str, n: int, window: int) -> np.ndarray:
    """The first n samples of a corpus by itself."""
    stream = Stream(Corpus.open(folder), vocab=VOCAB, seq_len=LENGTH, seed=SEED, validation=HELD_OUT, window=window)
    return stream.take(n).tokens


WEIGHT = st.one_of(st.integers(0, 5), st.sampled_from([0.1, 0.37, 1 / 3]))
STAGE = st.tuples(
    st.dictionaries(st.sampled_from(NAMES), WEIGHT, min_size=1).filter(lambda mixture: any(mixture.values())),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3), st.booleans()), min_size=1, max_size=4),
)


@settings(max_examples=20, deadline=None)
@given(stages=st.lists(STAGE, min_size=1, max_size=4), window=st.sampled_from([1, 4, 16]))
def test_every_source_goes_on(folders: dict[str, str], stages: list[Any], window: int) -> None:
    """Stages add, drop and weigh sources anew; steps have other batches, other ranks and restarts between them.

    The samples are those of each source by itself, in the order of the slow reference, none left out and none twice.
    """
    alone = {name: text_of(folder, 600, window) for name, folder in folders.items()}
    given = dict.fromkeys(NAMES, 0)
    mixtures = [[{"corpus": folders[name], "weight": w} for name, w in mixture.items()] for mixture, _ in stages]
    cursor = None
    for stage, (mixture, steps) in zip(stages_of(mixtures, window), stages, strict=True):
        expected = iter(slow(whole(list(map(float, mixture.values()))), sum(n * ranks for n, ranks, _ in steps), SEED))
        feeds: list[Any] = []
        for n, ranks, restart in steps:
            if restart or len(feeds) != ranks:
                feeds = [opened(stage, cursor) for _ in range(ranks)]
            taken = [feed.take(n * ranks, 0.0, rank, ranks) for rank, feed in enumerate(feeds)]
            for sample in torch.cat([each.samples["inputs"] for each in taken]).numpy():
                name = list(mixture)[next(expected)]
                assert np.array_equal(sample, alone[name][given[name]][:-1])
                given[name] += 1
            cursor = json.loads(json.dumps(feeds[0].cursor))
            assert all(feed.cursor == cursor for feed in feeds)
    tokens = {Path(name).name: 0 for name in NAMES}
    tokens |= {name: entry["tokens"] for name, entry in _by_name(folders, cursor).items()}
    assert tokens == {name: n * LENGTH for name, n in given.items()}


def _by_name(folders: dict[str, str], cursor: Any) -> dict[str, Any]:
    """The sources in a cursor, by the names of their corpora."""
    identities = {}
    for name, folder in folders.items():
        feed = opened(stages_of([folder])[0])
        identities[feed.cursor["corpus"]] = name
    return {identities[entry["corpus"]]: entry for entry in cursor["sources"]}


def test_every_document_once_an_epoch(folders: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Sources that leave after one epoch and after two, through two stages: what each gave spells its documents in the
    order of its epochs, to the last byte, and less than a sample beyond."""
    sources = [
        {"corpus": folders[name], "weight": 1, "leave_after": n} for name, n in zip(NAMES, (1, 2, 1), strict=True)
    ]
    first, second = stages_of([sources, sources], window=1)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}

    def read(stage: Stage, cursor: Any, n: int) -> Any:
        feed = opened(stage, cursor)
        after = [entry["tokens"] for entry in feed.cursor["sources"]]
        for _ in range(n):
            before = after
            sample = feed.take(1, 0.0, 0, 1).samples["labels"].numpy()[0]
            after = [entry["tokens"] for entry in feed.cursor["sources"]]
            rows[NAMES[np.argmax(np.subtract(after, before))]].append(sample)
        return feed.cursor

    cursor = read(first, None, 40)
    with pytest.raises(UserError, match="all of first, second, third have left"):
        read(second, cursor, 10**4)
    for name, epochs in zip(NAMES, (1, 2, 1), strict=True):
        corpus = CORPUS(folders[name])
        split = Split(corpus.tokens.documents, HELD_OUT, SEED)
        documents = [split.training_documents(epoch, np.arange(split.training)) for epoch in range(epochs)]
        ids = corpus.read(*corpus.tokens.document_ranges(np.concatenate(documents)))
        text = corpus.tokenizer.segmentation(VOCAB).apply(ids)[1:]
        given = np.concatenate(rows[name])
        assert np.array_equal(given[: len(text)], text)
        assert 0 < len(given) - len(text) <= LENGTH
    leaving = [record.getMessage() for record in caplog.records if "leaves" in record.getMessage()]
    assert sorted(message.split(" and")[0] for message in leaving) == [
        "first was read 1 times",
        "second was read 2 times",
        "third was read 1 times",
    ]


@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.integers(1, 40), min_size=2, max_size=8))
def test_leaving_does_not_depend_on_calls(folders: dict[str, str], parts: list[int]) -> None:
    """Where a source leaves, and what comes then, is the same however calls and restarts split it."""
    sources = [{"corpus": folders["first"], "weight": 3, "leave_after": 1}, {"corpus": folders["third"], "weight": 1}]
    (stage,) = stages_of([sources], window=16)
    whole = opened(stage)
    expected = whole.take(sum(parts), 0.0, 0, 1).samples["inputs"]
    cursor, done = None, 0
    for n in parts:
        feed = opened(stage, cursor)
        assert torch.equal(feed.take(n, 0.0, 0, 1).samples["inputs"], expected[done : done + n])
        cursor, done = json.loads(json.dumps(feed.cursor)), done + n
    assert cursor == json.loads(json.dumps(whole.cursor))


def test_after_one_corpus(folders: dict[str, str]) -> None:
    """A stage with several goes on where one with a single corpus was; one corpus alone after several is refused."""
    alone, mixed = stages_of([folders["first"], [{"corpus": folders[name], "weight": 1} for name in NAMES[:2]]])
    feed = opened(alone)
    feed.take(5, 0.0, 0, 1)
    after = opened(mixed, feed.cursor)
    inputs = after.take(6, 0.0, 0, 1).samples["inputs"].numpy()
    expected = [text_of(folders["first"], 8, 4)[5:8, :-1], text_of(folders["second"], 3, 4)[:, :-1]]
    assert sorted(inputs.tolist()) == sorted(np.concatenate(expected).tolist())
    with pytest.raises(UserError, match="the stage before had several corpora"):
        feed.seek(after.cursor)


def test_tokens_and_epochs(folders: dict[str, str]) -> None:
    """Sources with tokens and epochs take their part of the budget, those with weights share the rest."""
    n = opened(stages_of([folders["first"]])[0]).training_tokens()
    first, second, third = ({"corpus": folders[name]} for name in NAMES)
    rest = [{**second, "weight": 3}, {**third, "weight": 1}]
    for sources, expected in (
        ([{**first, "tokens": 4000}, *rest], [1 / 2, 3 / 8, 1 / 8]),
        ([{**first, "epochs": 0.5}, *rest], [n / 16000, 3 / 4 * (1 - n / 16000), 1 / 4 * (1 - n / 16000)]),
        ([{**first, "epochs": 1}, {**second, "tokens": n}], [1 / 2, 1 / 2]),
    ):
        (stage,) = stages_of([sources])
        resolved = in_tokens(stage)
        weights = [source.weight for source in resolved.data.corpora]
        assert np.allclose(np.array(weights) / sum(weights), expected, rtol=1e-12)
        feed = open_feed(resolved)
        assert isinstance(feed, MixedFeed)
        assert feed.weights() == weights == open_feed(stage).weights()
    with pytest.raises(UserError, match="leaves nothing to share by weight"):
        in_tokens(stages_of([[{**first, "epochs": 8000}, *rest]])[0])


def test_held_out_text(folders: dict[str, str]) -> None:
    """Each source is measured by itself, with its share; a certificate sees them in turns."""
    (stage,) = stages_of([[{"corpus": folders[name], "weight": w} for name, w in zip(NAMES, (3, 1, 0), strict=True)]])
    feed = open_feed(stage)
    parts = feed.measured(2)
    assert [(part.source, part.share) for part in parts] == [("first", 0.75), ("second", 0.25), ("third", 0)]
    for part, name in zip(parts, NAMES, strict=True):
        own = opened(stages_of([folders[name]])[0]).held_out(2)
        assert part.bytes == own.bytes
        assert torch.equal(part.samples["inputs"], own.samples["inputs"])
    assert feed.held_out(2).bytes == sum(part.bytes or 0 for part in parts)
    first, second = (opened(stages_of([folders[name]])[0]).batch(3)["inputs"].tolist() for name in NAMES[:2])
    assert sorted(feed.batch(4)["inputs"].tolist()) == sorted([*first, second[0]])


def test_pairs_of_segments(tmp_path: Path) -> None:
    """BERT's samples are mixed by the same mechanism: those of each source by itself, the masks too, and sources that
    leave at the end of an epoch."""
    draw, words = np.random.default_rng(0), [f"w{n}" for n in range(50)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"w0123456789", *(f"##{c}" for c in "w0123456789"), *words]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    for name in NAMES[:2]:
        with (tmp_path / f"{name}.jsonl").open("w") as out:
            for _ in range(12):
                print(json.dumps({"text": "\n".join(" ".join(draw.choice(words, size=5)) for _ in range(6))}), file=out)
        prepare(Source((tmp_path / f"{name}.jsonl",)), tmp_path / name, WordPieceEncoder(tmp_path / "vocab.txt"))
    raw = {
        "name": "x",
        "seed": SEED,
        "data": {"validation_fraction": HELD_OUT, "window": 4},
        "model": {"family": "bert", "vocab": len(pieces), "hidden": 32, "layers": 1, "heads": 2, "ffn": 32},
        "train": {"seq_len": 24, "global_batch": 1, "micro_batch": 1, "lr": 1e-3, "tokens": 8000},
    }
    corpora = [{"corpus": str(tmp_path / "first"), "weight": 1, "leave_after": 1}]
    corpora += [{"corpus": str(tmp_path / "second"), "weight": 2}]
    texts: list[Any] = [{"corpora": corpora}, *({"corpus": source["corpus"]} for source in corpora)]
    stages = [{"name": f"s{number}", "data": text, "from_scratch": True} for number, text in enumerate(texts)]
    feeds = [open_feed(stage) for stage in curriculum_of({**raw, "stages": stages}, Path("x.yaml")).stages]
    for feed in feeds:
        feed.seek(None)
    mixed, alone = feeds[0].take(90, 0.0, 0, 1).samples, [feed.take(90, 0.0, 0, 1).samples for feed in feeds[1:]]
    given = [entry["samples"] for entry in feeds[0].cursor["sources"]]
    assert sum(given) == 90
    assert given[0] < 30  # it has left
    order = [*slow([1, 2], 3 * given[0], SEED)]
    order = order[: [n for n, source in enumerate(order) if source == 0][given[0] - 1] + 1]
    order += [1] * (90 - len(order))
    for name, rows in mixed.items():
        sources = [iter(samples[name]) for samples in alone]
        assert all(torch.equal(row, next(sources[source])) for row, source in zip(rows, order, strict=True))


def test_documents_apart(folders: dict[str, str]) -> None:
    """Where documents are kept apart, each sample begins where its source says, whatever the others have of them."""
    (stage,) = stages_of([[{"corpus": folders[name], "weight": 1} for name in NAMES]])
    apart = replace(stage, data=replace(stage.data, reset_attention=True))
    taken = [opened(one).take(60, 0.0, 0, 1) for one in (stage, apart)]
    expected = documents.apart(taken[0].samples, opened(stage).tokenizer.eos)
    assert expected.keys() == taken[1].samples.keys()
    assert all(torch.equal(rows, taken[1].samples[name]) for name, rows in expected.items())
    assert taken[1].seen == pytest.approx(documents.seen(expected))


def test_what_cannot_be_mixed(folders: dict[str, str], corpus_path: Path, texts: list[str], tmp_path: Path) -> None:
    """A text twice, another tokenizer, and a source that was exchanged before a restart."""
    (tmp_path / "again").symlink_to(folders["first"])
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:200]))
    prepare(Source((tmp_path / "text.jsonl",)), tmp_path / "other", SentencePieceEncoder(vocab_size=900))
    for other, message in (("again", r"data.corpora\[1\].corpus: .* again"), ("other", "has another tokenizer than")):
        sources = [{"corpus": folders["first"], "weight": 1}, {"corpus": str(tmp_path / other), "weight": 1}]
        with pytest.raises(UserError, match=message):
            open_feed(stages_of([sources])[0])
    feeds = [
        open_feed(stages_of([[{"corpus": folders[name], "weight": 1} for name in names]])[0])
        for names in (("first", "second"), ("first", "third"))
    ]
    feeds[0].seek(None)
    with pytest.raises(UserError, match="the data cursor is not of first, third"):
        feeds[1].seek(feeds[0].cursor)
