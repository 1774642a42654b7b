"""The text of a stage, of whichever family."""

from __future__ import annotations

from pretrain import families
from pretrain.config import Stage
from pretrain.families.common.text import Feed


def open_feed(stage: Stage) -> Feed:
    """The feed of a stage, at no place yet: see Feed.seek."""
    return families.of(stage.model.family).text.open(stage)
