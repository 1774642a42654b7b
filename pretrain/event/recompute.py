"""What lanes remember after a growth whose stream does not follow from the old one: their last text, read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pretrain.engine.engine import Engine
from pretrain.families.common.text import Feed

RECOMPUTED = "recomputed"
"""What became of a memory at a growth event: see `recompute`."""


def recompute(engine: Engine, feed: Feed, cursor: Mapping[str, Any] | None, lanes: int) -> None:
    """Fill the memory of an engine, of so many lanes over all ranks, with what it makes of their text (collective).

    Whole samples of the document that a lane is in, as many as its memory reaches into; a lane that has read less than
    one remembers nothing. The first of them is computed as if nothing had been before.
    """
    memory = engine.memory
    assert memory is not None
    assert cursor is not None
    length, own = engine.seq_len, lanes // engine.layout.dp
    samples = -(-memory.length // length)
    texts = feed.past(cursor, samples * length)[engine.dp_rank * own : (engine.dp_rank + 1) * own]
    known = np.array([len(text) // length for text in texts] + [0] * (own - len(texts)))
    tokens = torch.zeros(own, samples * length, dtype=torch.int64)
    for row, count in enumerate(known.tolist()):
        if count:
            tokens[row, -count * length :] = texts[row][-count * length :]
    for number, inputs in enumerate(tokens.split(length, 1)):
        engine.remember({"inputs": inputs.contiguous(), "labels": inputs.contiguous()})
        memory.forget(known < samples - number)
