"""Text with duplicates that were put there on purpose, and a slow oracle that says which documents are alike."""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass

from datatrove.utils.text import simplify_text

WORDS = 5  # of a shingle, as in pretrain.prepare.keys.Near


@dataclass(frozen=True)
class Copy:
    """A document made of another one: numbers of both, and the similarity that was aimed at (1: the same)."""

    of: int
    number: int
    wanted: float


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """What near duplicates share, as the signatures see it."""
    words = simplify_text(text).split()
    return frozenset(zip(*(words[n:] for n in range(WORDS)), strict=False))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Of two sets, what they share of what they have together."""
    return len(a & b) / len(a | b) if a and b else 0.0


def plant(texts: list[str], wanted: Iterable[float], each: int, seed: int = 0) -> tuple[list[str], list[Copy]]:
    """The texts with ``each`` copies of every similarity among them: the end of a copy is other words."""
    draw = random.Random(seed)
    texts, copies = list(texts), []
    originals = draw.sample(range(len(texts)), each * len(list(wanted)))
    vocabulary = sorted({word for text in texts for word in text.split()})
    for nth, number in enumerate(originals):
        similarity = list(wanted)[nth // each]
        words = texts[number].split(" ")
        # With a share x of the words replaced at the end, the similarity is (1 - x) / (1 + x).
        changed = round(len(words) * (1 - similarity) / (1 + similarity))
        copy = words[: len(words) - changed] + draw.choices(vocabulary, k=changed)
        copies.append(Copy(number, len(texts), similarity))
        texts.append(" ".join(copy))
    return texts, copies


def alike(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """All pairs of documents whose similarity is at least this, by comparing them all."""
    sets = [shingles(text) for text in texts]
    pairs = itertools.combinations(range(len(texts)), 2)
    return {(a, b): s for a, b in pairs if (s := jaccard(sets[a], sets[b])) >= least}
