"""Batches that are made ahead in a thread are those that are made when they are taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import config
from pretrain.data.corpus.encoders import WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.families.common.text import Feed, Taken, Wanted
from pretrain.families.text import open_feed

LLAMA = {"vocab": 800, "hidden": 32, "layers": 1, "heads": 2, "head_dim": 16, "ffn": 32}
BERT = {"family": "bert", "vocab": 300, "hidden": 32, "layers": 1, "heads": 2, "head_dim": 16, "ffn": 32}


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 60 documents of drawn sentences."""
    folder, draw = tmp_path_factory.mktemp("bert"), np.random.default_rng(0)
    words = [f"w{n}" for n in range(200)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"w0123456789", *(f"##{c}" for c in "w0123456789"), *words]
    (folder / "vocab.txt").write_text("\n".join([*pieces, *(f"[unused{n}]" for n in range(200))]))
    with (folder / "texts.jsonl").open("w") as out:
        for _ in range(60):
            sentences = [" ".join(draw.choice(words, size=draw.integers(1, 9))) for _ in range(draw.integers(2, 20))]
            print(json.dumps({"text": "\n".join(sentences)}), file=out)
    prepare(Source((folder / "texts.jsonl",)), folder / "corpus", WordPieceEncoder(folder / "vocab.txt"))
    return folder / "corpus"


@pytest.fixture(scope="module", params=["llama2", "bert", "lanes"])
def opened(
    request: pytest.FixtureRequest, corpus_path: Path, bert_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Feed]:
    bert = request.param == "bert"
    data = {"corpus": str(bert_path if bert else corpus_path), "validation_fraction": 0.1, "window": 16}
    data |= {"mask_rate_end": 0.4} if bert else {}
    train = {"seq_len": 24, "global_batch": 12, "micro_batch": 2, "lr": 1e-3, "tokens": 2400, "eval_bytes": 2000}
    train |= {"memory": 24} if request.param == "lanes" else {}
    given = {"name": "x", "seed": 3, "data": data, "train": train}
    path = tmp_path_factory.mktemp("config") / "x.yaml"
    path.write_text(yaml.safe_dump({**given, "stages": [{"name": "one", "model": BERT if bert else LLAMA}]}))
    stage = config.load(path).stages[0]
    return lambda: open_feed(stage)


def _same(one: Taken, other: Taken) -> bool:
    assert one.samples.keys() == other.samples.keys()
    return one.bytes == other.bytes and all(torch.equal(x, other.samples[name]) for name, x in one.samples.items())


WANTED = st.builds(
    lambda n, progress, ranks: Wanted(n * ranks, progress, ranks - 1, ranks),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5]),
    st.integers(1, 3),
)
ACTIONS = st.one_of(
    st.tuples(st.just("take"), WANTED),
    st.tuples(st.just("expected"), WANTED),  # made ahead, then taken
    st.tuples(st.just("ahead"), WANTED),  # made ahead; whatever comes next may want something else
    st.tuples(st.just("seek"), st.integers(0, 5)),  # to a cursor of before
    st.tuples(st.just("measure"), st.none()),  # held-out text is read meanwhile
)


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=1, max_size=12))
def test_whatever_is_asked_in_between(opened: Callable[[], Feed], actions: list[tuple[str, Any]]) -> None:
    """Taken in any order, with seeks between, or never: samples and cursors are those of a feed without a thread."""
    plain, ahead = opened(), opened()
    plain.seek(None)
    ahead.seek(None)
    cursors: list[Any] = [None]
    waiting = False
    for action, what in actions:
        if action == "seek":
            cursor = cursors[what % len(cursors)]
            plain.seek(cursor)
            ahead.seek(cursor)
            waiting = False
        elif action == "measure":
            one, other = plain.held_out(4), ahead.held_out(4)
            assert all(torch.equal(x, other.samples[name]) for name, x in one.samples.items())
        else:
            if action != "take" and not waiting:
                ahead.make_ahead(what)
                waiting = True
            if action != "ahead":
                assert _same(plain.take(*what), ahead.take(*what))
                waiting = False
        assert ahead.cursor == plain.cursor
        cursors.append(json.loads(json.dumps(ahead.cursor)))


def test_what_goes_wrong_ahead_is_raised_by_take(opened: Callable[[], Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    feed = opened()
    feed.seek(None)

    def broken(*wanted: Any) -> Taken:
        raise OSError("the disk is gone")

    monkeypatch.setattr(feed, "_take", broken)
    wanted = Wanted(2, 0.0, 0, 1)
    feed.make_ahead(wanted)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(*wanted)
