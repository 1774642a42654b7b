"""The text of a stage, of whichever family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pretrain import families
from pretrain.config import Stage
from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.data.packing import Packed
from pretrain.families.common.text import Feed


def open_feed(stage: Stage) -> Feed:
    """The feed of a stage, at no place yet: see Feed.seek."""
    return families.of(stage.model.family).text.open(stage)


def packings(stage: Stage) -> dict[str, Packed]:
    """What becomes of a stage's documents by each way to pack them; nothing where its corpus is not there."""
    return open_feed(stage).packings() if (Path(stage.data.corpus) / DESCRIPTION).is_file() else {}


def in_tokens(stage: Stage) -> Stage:
    """The stage with its budget and its warm-up in tokens: whole steps, at least one. Reads the corpus of one that has
    them in epochs."""
    train = stage.train
    step = train.global_batch * train.seq_len
    tokens = train.tokens or max(1, round(train.epochs * open_feed(stage).training_tokens() / step)) * step
    warmup = train.warmup_tokens or round(train.warmup * tokens)
    return replace(stage, train=replace(train, tokens=tokens, warmup_tokens=warmup))
