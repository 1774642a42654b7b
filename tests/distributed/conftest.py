"""What whole stages are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source

SYLLABLES = [first + second for first in "bcdfghjklmn" for second in "aeiou"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of drawn words with its own tokenizer of 400 pieces."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(SYLLABLES, size=draw.integers(1, 4))) for _ in range(300)]
    text = folder / "text.jsonl"
    with text.open("w") as out:
        for _ in range(400):
            print(json.dumps({"text": " ".join(draw.choice(words, size=60))}), file=out)
    prepare(Source((text,)), folder / "prepared", SentencePieceEncoder(vocab_size=400))
    return folder / "prepared"
