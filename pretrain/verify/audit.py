"""The certificate of a growth event in one process, by the reference model: offline growth, and after the fact.

The training stack measures its own events on its own shards (pretrain.event); here nothing of it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from growth import Architecture, Box, Plan, reference
from growth.certificate import Certificate, relative_error
from growth.evaluate import Read
from growth.probe import certify
from pretrain.data.corpus import DESCRIPTION, Corpus
from pretrain.data.validation import probe

SAMPLES = 4
LENGTH = 256  # tokens of a sample at most
COPIES = 6  # of the grown weights in float64: weights, gradients of two passes, activations and what autograd keeps


@dataclass(frozen=True)
class Text:
    """probe: token ids [n, S + 1] in the old segmentation; batch: in the new one; source: what they are, in words."""

    probe: torch.Tensor
    batch: torch.Tensor
    source: str


def open_corpus(folder: str | Path | None) -> Corpus | None:
    """The corpus of a folder, None where there is none; raises UserError for one that is damaged."""
    return Corpus.open(folder) if folder and (Path(folder) / DESCRIPTION).is_file() else None


def text(plan: Plan, config: Mapping[str, Any], corpus: Corpus | None) -> Text:
    """What a stage (its resolved config) is measured on: text held out of its corpus, or ids drawn at random."""
    assert plan.old is not None
    length = min(config.get("train", {}).get("seq_len", LENGTH), LENGTH)
    sizes = plan.old.sizes["vocab"], plan.new.sizes["vocab"]
    if corpus is None:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(size, (SAMPLES, length + 1), generator=generator) for size in sizes]
        return Text(drawn[0], drawn[1], "token ids drawn at random (there is no corpus: name one with --corpus)")
    seed, held_out = config.get("seed", 0), config.get("data", {}).get("validation_fraction", 0.01)
    read = [
        torch.from_numpy(probe(corpus, SAMPLES, vocab=size, seq_len=length, seed=seed, validation=held_out))
        for size in sizes
    ]
    return Text(read[0], read[1], f"held-out text of {corpus.path}")


def function(
    old: Architecture, read_old: Read, new: Architecture, read_new: Read, ids: torch.Tensor
) -> tuple[float, float, float]:
    """(relative error of the logits, loss of the old model, loss of the new one) in float64 over the old ids, by the
    reference model, a layer at a time; ids [n, S + 1]."""
    vocab = old.sizes["vocab"]
    with torch.no_grad():
        before = reference.logits(read_old, old, ids[:, :-1], torch.float64)
        after = reference.logits(read_new, new, ids[:, :-1], torch.float64)[..., :vocab]
        losses = [float(F.cross_entropy(x.flatten(0, 1), ids[:, 1:].flatten())) for x in (before, after)]
        return relative_error(after, before), losses[0], losses[1]


def certificate(plan: Plan, old: Read, found: Text, lr: float) -> Certificate:
    """The certificate of a plan on the parent that `old` reads. Whether new parameters are dead needs the gradients of
    all of them; they are not counted where these do not fit into the machine's memory."""
    if fits(plan):
        return certify(plan, old, found.probe, lr=lr, train_ids_BS=found.batch, dtype=torch.float64)

    def new(kind: str, name: str, box: Box) -> torch.Tensor:
        return plan.evaluate(name, box, old, kind)

    assert plan.old is not None
    error, before, after = function(plan.old, old, plan.new, new, found.probe)
    return Certificate.of(plan, error=error, loss_before=before, loss_after=after)


def fits(plan: Plan) -> bool:
    """Whether all of the new model and its gradients fit into the memory that this machine has free."""
    return needed(plan.new) < free_memory()


def needed(arch: Architecture) -> int:
    """About the bytes that a model of this shape and its gradients take, with what autograd keeps."""
    return COPIES * 8 * arch.parameters()


def free_memory() -> int:
    """Bytes that this machine can still give to a process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def moments_follow(plan: Plan, old: Read, arch: Architecture, new: Read, ids: torch.Tensor) -> dict[str, float]:
    """Per tensor, how far the true gradient of the grown model `new` is from the old one's through the plan's rule for
    exp_avg, relative to its largest element. Of a plan that preserves the function it is nothing but rounding.

    The loss is over the old ids, on ids [n, S + 1] of the old segmentation; elements born in the event do not count.
    """
    assert plan.old is not None
    before, after = _gradients(plan.old, old, ids, plan.old), _gradients(arch, new, ids, plan.old)
    errors = {}
    for name, tensor in plan.new.tensors().items():
        box = Box.whole(tensor.shape)
        expected = plan.evaluate(name, box, lambda _, name, box: before[name][box.slices()], "exp_avg")
        kept = ~plan.new_mask(name, box)
        if kept.any():
            found = after[name][kept]
            errors[name] = float((expected[kept] - found).abs().max() / found.abs().max().clamp_min(1e-300))
    return errors


def _gradients(arch: Architecture, read: Read, ids: torch.Tensor, old: Architecture) -> dict[str, torch.Tensor]:
    weights = {
        name: read("weight", name, Box.whole(t.shape)).double().requires_grad_() for name, t in arch.tensors().items()
    }
    logits = reference.logits(lambda _, name, box: weights[name][box.slices()], arch, ids[:, :-1], torch.float64)
    loss = F.cross_entropy(logits[..., : old.sizes["vocab"]].flatten(0, 1), ids[:, 1:].flatten())
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
