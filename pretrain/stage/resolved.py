"""A stage on its ranks, worked out once: its layout, its budget and its warm-up in tokens, its text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.config import Curriculum, Grow, Stage
from pretrain.config.layouts import layout_of
from pretrain.event.teacher import taught
from pretrain.families.common.text import Feed, Taken, Wanted
from pretrain.families.text import in_tokens, open_feed
from pretrain.layout import Layout
from pretrain.runtime.ranks import agreed
from pretrain.schedule.curve import sharing


@dataclass(frozen=True)
class Resolved:
    """What the rooms of a stage are handed.

    given: the stage as it is configured, with the hash of its teacher, which is what a checkpoint holds. stage: with
    its budget and its warm-up in tokens. curriculum: with the budgets in tokens of all stages on which its schedule
    depends.
    """

    curriculum: Curriculum
    given: Stage
    stage: Stage
    layout: Layout
    feed: Feed

    @property
    def folder(self) -> Path:
        """The stage's part of the run folder."""
        return self.curriculum.folder / self.given.name

    def growing(self, grow: Grow) -> Resolved:
        """The same, grown in another way."""
        return replace(self, given=replace(self.given, grow=grow), stage=replace(self.stage, grow=grow))

    def batch(self, done: int, rank: int, *, last: bool) -> Taken:
        """A data-parallel rank's part of the global batch after `done` tokens of the stage; that of the next step is
        begun, unless this is the last one."""
        train, ranks = self.stage.train, self.layout.dp
        taken = self.feed.take(*Wanted.at(train, done, rank=rank, ranks=ranks))
        if not last:
            done += train.batch_at(done) * train.seq_len
            self.feed.make_ahead(Wanted.at(train, done, rank=rank, ranks=ranks))
        return taken


def resolve(curriculum: Curriculum, given: Stage, world: int) -> Resolved:
    """A stage on `world` ranks (collective). Raises what `taught`, `layout_of` and `open_feed` do.

    Rank 0 counts the text of what has its budget in epochs, which reads whole corpora: the stage, those that share its
    curve, and the one whose budget says when it ends.
    """
    given = agreed(lambda: taught(curriculum, given))
    layout = layout_of(given, world)
    others = sharing(curriculum, given)
    if given.train.until == "gstack":
        others = [*others, curriculum.stages[[s.name for s in curriculum.stages].index(given.name) + 1]]

    known = agreed(lambda: {one.name: in_tokens(one) for one in (given, *others)})
    feed = open_feed(known[given.name])
    stages = tuple(known.get(one.name, one) for one in curriculum.stages)
    return Resolved(replace(curriculum, stages=stages), given, known[given.name], layout, feed)
