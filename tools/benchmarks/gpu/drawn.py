"""Text that is made on the spot: documents of words that are made of syllables, with something to be learnt in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.corpus.sources import BATCH, Source

SYLLABLES = [first + second for first in "bcdfghjklmnprstvz" for second in "aeiou"]
VOCABULARY = 600  # words
FOLLOWING = 12  # words that may follow a word


@dataclass(frozen=True)
class Drawn(Source):
    """A source without files: each word is followed by one of a few."""

    documents: tuple[str, ...] = ()

    @staticmethod
    def of(documents: int, words: int) -> Drawn:
        """So many documents of so many words, always the same."""
        draw = np.random.default_rng(0)
        spelt = ["".join(draw.choice(SYLLABLES, size=draw.integers(1, 4))) for _ in range(VOCABULARY)]
        follows = draw.integers(VOCABULARY, size=(VOCABULARY, FOLLOWING))
        texts = []
        for _ in range(documents):
            at = [int(draw.integers(VOCABULARY))]
            for choice in draw.integers(FOLLOWING, size=words - 1):
                at.append(int(follows[at[-1], choice]))
            texts.append(" ".join(spelt[word] for word in at))
        return Drawn(dataset="drawn words", documents=tuple(texts))

    def describe(self) -> dict[str, Any]:
        """See Source."""
        return {"kind": "drawn", "documents": len(self.documents)}

    def batches(self, skip: int = 0) -> Iterator[list[str]]:
        """See Source."""
        for start in range(skip, len(self.documents), BATCH):
            yield list(self.documents[start : start + BATCH])


def judged(folder: Path, text: Drawn) -> float:
    """The loss, in nats a token, that transformers gives an exported model on some of the text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for document in text.documents[:8]:
        ids = tokenizer(document, return_tensors="pt")["input_ids"][:, :256]
        with torch.no_grad():
            losses.append(float(model(ids, labels=ids).loss))
    return sum(losses) / len(losses)
