"""Where a byte-level BPE may be cut: when its first V pieces are a tokenizer of their own, whose segmentation is what
the full one's was before the later merges.

BPE always applies the possible merge of the lowest rank, the leftmost of equals. So what happens inside a stretch of
text that becomes one piece is what happens when that piece is all the text there is: a piece has one derivation, and
only the last merge of it ever makes the piece. Call the rank of that merge the piece's. Where all pieces below V have
lower ranks than all others, and are made of pieces below V alone, the full tokenizer first applies all merges of pieces
below V, as the tokenizer of these merges does, and then only joins what they have made. So every later piece stands for
what the smaller tokenizer makes of its text, wherever it is. A piece in which no derivation ends is found as a whole
word (`ignore_merges`, as Llama 3 has it) or not at all, and then it is spelled the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pair = tuple[str, str]


@dataclass(frozen=True)
class Bpe:
    """pieces: those that are made of bytes, with their ids. added: the ids of others, which are found before text is
    cut. ranks: of the merges."""

    pieces: Mapping[str, int]
    added: Mapping[str, int]
    ranks: Mapping[Pair, int]

    @staticmethod
    def of(content: Mapping[str, Any]) -> Bpe:
        """That of a tokenizer.json, where merges are pairs or, in older ones, two words."""
        model = content["model"]
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        pieces = {piece: i for piece, i in model["vocab"].items() if piece not in added}
        return Bpe(pieces, added, {pair: rank for rank, pair in enumerate(pairs)})

    @property
    def size(self) -> int:
        return max((*self.pieces.values(), *self.added.values())) + 1

    @cached_property
    def derivations(self) -> dict[str, list[Pair]]:
        """The merges that make each piece of several bytes, in order; without the pieces that no merge ever makes."""
        found = {}
        for piece in self.pieces:
            parts, merges = _merged(piece, self.ranks)
            if len(piece) > 1 and len(parts) == 1:
                found[piece] = merges
        return found

    @cached_property
    def cut(self) -> NDArray[np.bool_]:
        """bool [size + 1]: whether the first so many pieces may be a tokenizer."""
        cut = np.ones(self.size + 1, dtype=np.bool_)
        base = [*self.added.values(), *(i for piece, i in self.pieces.items() if len(piece) == 1)]
        cut[: max(base) + 1] = False
        ranks = np.full(self.size, -1)
        for piece, merges in self.derivations.items():
            i = self.pieces[piece]
            ranks[i] = self.ranks[merges[-1]]
            highest = max(self.pieces["".join(pair)] for pair in merges)
            cut[i + 1 : highest + 1] = False
        before = np.maximum.accumulate(np.concatenate([[-1], ranks]))
        later = np.where(ranks < 0, len(self.ranks), ranks)
        after = np.minimum.accumulate(np.concatenate([later, [len(self.ranks)]])[::-1])[::-1]
        return np.asarray(cut & (before < after))

    def merges(self, vocab: int) -> list[Pair]:
        """Those that make pieces below an id, by rank."""
        last = [merges[-1] for piece, merges in self.derivations.items() if self.pieces[piece] < vocab]
        return sorted(last, key=self.ranks.__getitem__)

    def spellings(self, vocab: int) -> list[list[int]]:
        """For each id from `vocab` on, where the vocabulary may be cut, the ids below it that spell it."""
        ranks = {pair: rank for rank, pair in enumerate(self.merges(vocab))}
        by_id = {i: piece for piece, i in self.pieces.items()}
        texts = [by_id.get(i, "") for i in range(vocab, self.size)]  # ids without a piece are never asked for
        return [[self.pieces[part] for part in _merged(text, ranks)[0]] for text in texts]


def _merged(text: str, ranks: Mapping[Pair, int]) -> tuple[list[str], list[Pair]]:
    """What BPE makes of a text, and the merges that it applies."""
    parts, merges = list(text), list[Pair]()
    while possible := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        i = min(possible)[1]
        merges.append((parts[i], parts[i + 1]))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts, merges


def cut_off(content: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The tokenizer.json of the first pieces, where it may be cut there."""
    bpe = Bpe.of(content)
    pieces = {piece: i for piece, i in content["model"]["vocab"].items() if i < vocab}
    return {**content, "model": {**content["model"], "vocab": pieces, "merges": [list(p) for p in bpe.merges(vocab)]}}


def by_age(content: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with other ids, so that it may be cut wherever that is possible at all: pieces that are not
    made of bytes, such as special ones, then single bytes, then all others in the order of their ranks, and at last
    those that no merge makes. Nothing is put around a text any more: what is, goes by ids."""
    bpe = Bpe.of(content)
    single = [piece for piece in bpe.pieces if len(piece) == 1]
    made = sorted(bpe.derivations, key=lambda piece: bpe.ranks[bpe.derivations[piece][-1]])
    found = [piece for piece in bpe.pieces if len(piece) > 1 and piece not in bpe.derivations]
    order = [sorted(group, key={**bpe.pieces, **bpe.added}.__getitem__) for group in (bpe.added, single)]
    ids = {piece: i for i, piece in enumerate([*order[0], *order[1], *made, *found])}
    added = [{**token, "id": ids[token["content"]]} for token in content.get("added_tokens") or ()]
    added.sort(key=lambda token: token["id"])
    return {**content, "added_tokens": added, "post_processor": None, "model": {**content["model"], "vocab": ids}}
