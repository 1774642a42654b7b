"""Blocks that make units of several tokens, as `model.levels` says them: numbers of blocks, with what leads from one
level to the next between them."""

from __future__ import annotations

from collections.abc import Sequence

from growth.errors import GrowthError
from growth.family import Family, Stream


def kinds(table: Family, levels: Sequence[int]) -> tuple[str, ...]:
    """The kinds of the layers in order: so many blocks at each level, and what leads from one level to the next, down
    in the first half and up again in the second. Raises GrowthError for more levels than the table has."""
    same = {takes: kind for kind, (takes, gives) in table.streams.items() if takes == gives}
    same.setdefault(Stream(), table.kinds[0])
    down = {takes: kind for kind, (takes, gives) in table.streams.items() if takes.tokens < gives.tokens}
    up = {takes: kind for kind, (takes, gives) in table.streams.items() if takes.tokens > gives.tokens}
    listed, stream = list[str](), Stream()
    for number, blocks in enumerate(levels):
        listed += [same[stream]] * blocks
        if number < len(levels) - 1:
            onward = down if number < len(levels) // 2 else up
            if stream not in onward:
                raise GrowthError(f"levels {list(levels)}: {table.name} has not so many below the first")
            listed.append(onward[stream])
            stream = table.through(listed[-1])[1]
    return tuple(listed)


def levels_of(table: Family, kinds: Sequence[str]) -> tuple[int, ...]:
    """The numbers of blocks whose kinds these are: the inverse of `kinds`."""
    levels = [0]
    for takes, gives in map(table.through, kinds):
        if takes == gives:
            levels[-1] += 1
        else:
            levels.append(0)
    return tuple(levels)


def example(compressors: int) -> list[int]:
    """The published blocks: one before and one behind each compressor and expander."""
    return [1, *[2] * (2 * compressors - 1), 1]
