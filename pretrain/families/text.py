"""The text of a stage, of whichever family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pretrain import families
from pretrain.config import Stage
from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.data.packing import Packed
from pretrain.errors import UserError
from pretrain.families.common.mixture import MixedFeed
from pretrain.families.common.text import Feed


def open_feed(stage: Stage) -> Feed:
    """The feed of a stage, at no place yet: see Feed.seek. UserError for a memory that its family cannot have."""
    family, data = families.of(stage.model.family), stage.data
    text = family.text
    if stage.train.memory and not family.memory:
        able = ", ".join(name for name, other in families.FAMILIES.items() if other.memory)
        raise UserError(
            f"train.memory: {stage.train.memory}, but a {family.name} has no memory, as {able} can; remove it"
        )
    if not data.corpora:
        return text.open(stage)
    return MixedFeed(stage, [text.open(replace(stage, data=data.only(source.corpus))) for source in data.corpora])


def packings(stage: Stage) -> dict[str, Packed]:
    """What becomes of a stage's documents by each way to pack them; nothing where its text is not there."""
    there = all((Path(folder) / DESCRIPTION).is_file() for folder in stage.data.folders)
    return open_feed(stage).packings() if there else {}


def in_tokens(stage: Stage) -> Stage:
    """The stage with its budget and its warm-up in tokens (whole steps, at least one), and its sources by weight. Reads
    the corpora of what it has in epochs."""
    train = stage.train
    step = train.global_batch * train.seq_len
    tokens = train.tokens or max(1, round(train.epochs * open_feed(stage).training_tokens() / step)) * step
    warmup = train.warmup_tokens or round(train.warmup * tokens)
    stage = replace(stage, train=replace(train, tokens=tokens, warmup_tokens=warmup))
    feed = open_feed(stage) if stage.data.corpora else None
    if not isinstance(feed, MixedFeed):
        return stage
    weighed = zip(stage.data.corpora, feed.weights(), strict=True)
    corpora = tuple(replace(source, weight=weight, tokens=None, epochs=None) for source, weight in weighed)
    return replace(stage, data=replace(stage.data, corpora=corpora))
