"""Blocks that make units of several tokens, as `model.levels` says them: numbers of blocks, with what leads from one
level to the next between them."""

from __future__ import annotations

from collections.abc import Sequence

from growth.family import Family, Stream


def kinds(table: Family, levels: Sequence[int]) -> tuple[str, ...]:
    """The kinds of the layers in order: so many blocks at each level, and what leads from one level to the next, down
    in the first half and up again in the second."""
    same = {takes: kind for kind, (takes, gives) in table.streams.items() if takes == gives}
    same.setdefault(Stream(), table.kinds[0])
    down = {takes: kind for kind, (takes, gives) in table.streams.items() if takes.tokens < gives.tokens}
    up = {takes: kind for kind, (takes, gives) in table.streams.items() if takes.tokens > gives.tokens}
    listed, stream = list[str](), Stream()
    for number, blocks in enumerate(levels):
        listed += [same[stream]] * blocks
        if number < len(levels) - 1:
            listed.append((down if number < len(levels) // 2 else up)[stream])
            stream = table.through(listed[-1])[1]
    return tuple(listed)


def example(compressors: int) -> list[int]:
    """The published blocks: one before and one behind each compressor and expander."""
    return [1, *[2] * (2 * compressors - 1), 1]
