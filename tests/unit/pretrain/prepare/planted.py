"""Text with duplicates that were put there on purpose, and a slow oracle that says which documents are alike."""

import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datatrove.utils.text import simplify_text

from pretrain.prepare.words import WORDS

LENGTH = 5  # words of a shingle, as in pretrain.prepare.keys.Near


@dataclass(frozen=True)
class Copy:
    """A document made of another one: numbers of both, and the similarity that was aimed at (1: the same)."""

    of: int
    number: int
    wanted: float


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """What near duplicates share, as the signatures see it."""
    words = WORDS.word_tokenize(simplify_text(text))
    return frozenset(zip(*(words[n:] for n in range(LENGTH)), strict=False))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Of two sets, what they share of what they have together."""
    return len(a & b) / len(a | b) if a and b else 0.0


def plant(texts: list[str], wanted: Iterable[float], each: int, seed: int = 0) -> tuple[list[str], list[Copy]]:
    """The texts with ``each`` copies of every similarity among them: the end of a copy is other words."""
    draw, wanted = random.Random(seed), list(wanted)
    texts, copies = list(texts), []
    originals = draw.sample(range(len(texts)), each * len(wanted))
    vocabulary = sorted({word for text in texts for word in text.split() if word.isalpha()})
    for nth, number in enumerate(originals):
        similarity = wanted[nth // each]
        words = texts[number].split()
        others, whole = draw.choices(vocabulary, k=len(words)), shingles(texts[number])

        def copy(changed: int, words: list[str] = words, others: list[str] = others) -> str:
            return " ".join(words[: len(words) - changed] + others[:changed])

        # The fewest words at the end whose change leaves no more in common than is wanted.
        def likeness(
            changed: int, whole: frozenset[tuple[str, ...]] = whole, copy: Callable[[int], str] = copy
        ) -> float:
            return -jaccard(whole, shingles(copy(changed)))

        changed = bisect_left(range(len(words)), -similarity, key=likeness) if similarity < 1 else 0
        copies.append(Copy(number, len(texts), similarity))
        texts.append(copy(changed) if changed else texts[number])
    return texts, copies


def alike(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """All pairs of documents whose similarity is at least this, by comparing them all."""
    sets = [shingles(text) for text in texts]
    pairs = itertools.combinations(range(len(texts)), 2)
    return {(a, b): s for a, b in pairs if (s := jaccard(sets[a], sets[b])) >= least}
