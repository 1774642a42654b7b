"""Samples as an engine takes them: tensors with one row a sample, by the names that a family's model gives them.

Every family has inputs and labels, int64 [n, S]; mask, float [n, S], is 1 where a label counts, and may be absent if
all do. See the models in pretrain/families/ for what else a family has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Samples = Mapping[str, Tensor]


def causal(tokens: Tensor, ahead: int = 1, mask: Tensor | None = None) -> Samples:
    """Samples of a causal language model: of tokens [n, S + ahead] every one but the first `ahead` is the label of the
    input so many places before it; mask [n, S]."""
    samples = {"inputs": tokens[:, :-ahead].contiguous(), "labels": tokens[:, ahead:].contiguous()}
    return samples if mask is None else {**samples, "mask": mask}


def part(samples: Samples, rank: int, ranks: int) -> Samples:
    """One data-parallel rank's equal share of samples that every rank has."""
    n = size(samples) // ranks
    return {name: rows[rank * n : (rank + 1) * n] for name, rows in samples.items()}


def in_lanes(samples: Samples, rank: int, ranks: int, micro_batch: int) -> Samples:
    """One data-parallel rank's share of samples that go on behind each other, as micro-batches whose rows do: as many
    lanes as all ranks' micro-batches have rows, of as many samples each."""
    n = size(samples)
    rows = torch.arange(n).view(ranks, micro_batch, -1)[rank].t().flatten()
    return {name: values[rows] for name, values in samples.items()}


def size(samples: Samples) -> int:
    """How many samples there are."""
    return len(samples["inputs"])
