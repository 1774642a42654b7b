"""A model that carries its own rotary frequencies: trained by Megatron-core, it is what the reference says."""

from __future__ import annotations

import numpy as np
import torch

import growth
from growth import Box
from pretrain.families import reference
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_layouts import LAYOUTS, assemble, world


def test_reference_agrees() -> None:
    """Logits after three steps at TP2 x PP2, with heads that no whole factor leads to; theta's own would differ."""
    old, how = ranks.GQA, LAYOUTS["tp2-pp2"]
    wider = growth.between(old, old.replace({"head_dim": 12}), {"head_dim": "rotary_table"}, seed=0, init_std=0.05).new
    found = run(world(how), ranks.trained_logits, wider, how, 3)
    values = assemble(wider, [r[0] for r in found])
    ids = ranks.batches(wider, 1)[0]["inputs"]

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return torch.from_numpy(values[kind, name])[box.slices()]

    logits = next(r[1] for r in found if r[1] is not None)
    table, plain = (reference.logits(read, arch, ids).numpy() for arch in (wider, wider.replace(rope_frequencies=())))
    scale = np.abs(table).max()
    assert np.abs(logits - table).max() <= 1e-5 * scale
    assert np.abs(logits - plain).max() > 1e-3 * scale
