"""The loss of a stage on its samples, by the reference models: in one process, without Megatron-core."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growth import Architecture
from growth.evaluate.box_values import Read
from pretrain.data.samples import Samples
from pretrain.families import reference
from pretrain.families.bert import reference as bert


def words(logits_BSV: Tensor, samples: Samples) -> Tensor:
    """The mean loss in nats of the labels that count."""
    labels_BS = samples["labels"]
    if "mask" not in samples:
        return F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())
    counted = samples["mask"].bool()
    return F.cross_entropy(logits_BSV[counted], labels_BS[counted])


def objective(
    model: Read, arch: Architecture, samples: Samples, dtype: torch.dtype = torch.float32, vocab: int | None = None
) -> Tensor:
    """What training minimises: the loss of the words, over the first `vocab` ids if given; of BERT also that of the
    order of the pairs."""
    if arch.family != "bert":
        return words(reference.logits(model, arch, samples["inputs"], dtype)[..., :vocab], samples)
    valid = samples["valid"].bool()
    found, order = bert.heads(model, arch, samples["inputs"], samples["types"], dtype, valid)
    return words(found[..., :vocab], samples) + F.cross_entropy(order, samples["order"])
