"""A loss is a list of terms. Each is a mean over what it counts in the global batch, and the loss is their sum,
by their weights.

A term is computed from a model's outputs, by name, and its samples. Megatron-core's models and the reference models
give the same outputs, so training, validation, certificates and verification share every term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.samples import Samples

Outputs = Mapping[str, Tensor]
"""What a model made of a micro-batch: words, the negative log-likelihood of every label, [B, S]; and for those that
judge pairs of sentences next_sentence, logits [B, 2]."""


@dataclass(frozen=True)
class Term:
    """name: in metrics. total: the sum of the term over a micro-batch, in nats, from its outputs and samples.
    count: over how many labels of these samples the term is a mean. weight: of this mean in the loss."""

    name: str
    total: Callable[[Outputs, Samples], Tensor]
    count: Callable[[Samples], float]
    weight: float = 1.0


def _words(outputs: Outputs, samples: Samples) -> Tensor:
    loss_BS = outputs["words"].float() if outputs["words"].dtype != torch.float64 else outputs["words"]
    return (loss_BS * samples["mask"] if "mask" in samples else loss_BS).sum()


def _labels(samples: Samples) -> float:
    return float(samples["mask"].sum()) if "mask" in samples else float(samples["labels"].numel())


def _next_sentence(outputs: Outputs, samples: Samples) -> Tensor:
    logits_B2 = outputs["next_sentence"]
    wide = logits_B2 if logits_B2.dtype == torch.float64 else logits_B2.float()
    return F.cross_entropy(wide, samples["next_sentence"], reduction="sum")


def _pairs(samples: Samples) -> float:
    return float((samples["next_sentence"] >= 0).sum())


NEXT_TOKEN = Term("loss", _words, _labels)
MASKED_TOKEN = Term("mlm_loss", _words, _labels)
NEXT_SENTENCE = Term("nsp_loss", _next_sentence, _pairs)


def of_logits(logits: Outputs, samples: Samples, vocab: int | None = None) -> Outputs:
    """The outputs that terms take, from a model's logits: words over the first `vocab` ids if that is given."""
    words_BSV = logits["words"][..., :vocab]
    loss_BS = F.cross_entropy(words_BSV.flatten(0, 1), samples["labels"].flatten(), reduction="none")
    return {**logits, "words": loss_BS.view(samples["labels"].shape)}


def mean(terms: Sequence[Term], outputs: Outputs, samples: Samples) -> Tensor:
    """The loss of samples that are a whole batch: the sum of the means of the terms, in nats."""
    means = [term.weight * term.total(outputs, samples) / max(1.0, term.count(samples)) for term in terms]
    return torch.stack(means).sum()
