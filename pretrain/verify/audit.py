"""The certificate of a growth event in one process, by the reference model: offline growth, and after the fact.

The training stack measures its own events on its own shards (pretrain.event.certify); here nothing of it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from growth import Architecture, Box, Plan
from growth.certificate import Certificate, relative_error
from growth.evaluate.box_values import Read
from pretrain import families
from pretrain.config import Stage
from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.data.samples import Samples
from pretrain.families.common.text import Feed
from pretrain.families.reference import logits, objective, words
from pretrain.families.text import open_feed
from pretrain.verify.probe import certify

SAMPLES = 4
LENGTH = 256  # tokens of a sample at most
COPIES = 6  # of the grown weights in float64: weights, gradients of two passes, activations and what autograd keeps


@dataclass(frozen=True)
class Text:
    """Samples of the family (see pretrain.data.samples): probe in ids that both models have and no longer than the old
    one's positions, batch in the new one; source: what they are, in words."""

    probe: Samples
    batch: Samples
    source: str


def open_corpus(stage: Stage, corpus: Path | None = None) -> Feed | None:
    """The text of a stage (or of another corpus), None where there is none; UserError for one that is damaged."""
    data = stage.data.only(str(corpus)) if corpus else stage.data
    if not all((Path(folder) / DESCRIPTION).is_file() for folder in data.folders):
        return None
    train = replace(stage.train, seq_len=min(stage.train.seq_len, LENGTH))
    return open_feed(replace(stage, data=data, train=train))


def text(plan: Plan, stage: Stage, feed: Feed | None) -> Text:
    """What an event is measured on: text held out of the stage's corpus, or ids drawn at random."""
    assert plan.old is not None
    vocab = min(plan.old.sizes["vocab"], plan.new.sizes["vocab"])
    length = min(stage.train.seq_len, LENGTH)
    shorter = min(length, plan.old.sizes.get("positions", length))
    if feed is None:
        told = "token ids drawn at random (there is no corpus: name one with --corpus)"
        drawn = [_drawn(plan.new, size, n) for size, n in ((vocab, shorter), (plan.new.sizes["vocab"], length))]
        return Text(drawn[0], drawn[1], told)
    return Text(feed.probe(SAMPLES, vocab, shorter), feed.batch(SAMPLES), f"held-out text of {feed.source}")


def _drawn(arch: Architecture, vocab: int, length: int) -> Samples:
    family, draw = families.of(arch.family), torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (SAMPLES, length + family.tokens_ahead(arch)), generator=draw)
    return family.samples_of(arch, ids)


def function(
    old: Architecture, read_old: Read, new: Architecture, read_new: Read, probe: Samples
) -> tuple[float, float, float]:
    """(relative error of the logits, loss of the old model, loss of the new one) in float64 over the old ids, by the
    reference model, a layer at a time."""
    vocab = min(old.sizes["vocab"], new.sizes["vocab"])
    with torch.no_grad():
        before = logits(read_old, old, probe, torch.float64)[..., :vocab]
        after = logits(read_new, new, probe, torch.float64)[..., :vocab]
        return relative_error(after, before), float(words(before, probe, old)), float(words(after, probe, new))


def certificate(plan: Plan, old: Read, found: Text, lr: float) -> Certificate:
    """The certificate of a plan on the parent that `old` reads. Whether new parameters are dead needs the gradients of
    all of them; they are not counted where these do not fit into the machine's memory."""
    if fits(plan):
        return certify(
            plan,
            old,
            found.probe,
            lr=lr,
            train_ids_BS=found.batch,
            losses=(
                lambda model, arch, vocab: _of_words(model, arch, found.probe, vocab),
                lambda model, arch, vocab: objective(model, arch, found.batch, torch.float64, vocab),
            ),
            dtype=torch.float64,
        )

    def new(kind: str, name: str, box: Box) -> torch.Tensor:
        return plan.evaluate(name, box, old, kind)

    assert plan.old is not None
    error, before, after = function(plan.old, old, plan.new, new, found.probe)
    return Certificate.of(plan, error=error, loss_before=before, loss_after=after)


def _of_words(model: Read, arch: Architecture, probe: Samples, vocab: int | None) -> torch.Tensor:
    return words(logits(model, arch, probe, torch.float64)[..., :vocab], probe, arch)


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


def moments_follow(plan: Plan, old: Read, arch: Architecture, new: Read, probe: Samples) -> dict[str, float]:
    """Per tensor, how far the true gradient of the grown model `new` is from the old one's through the plan's rule for
    exp_avg, relative to its largest element. Of a plan that preserves the function it is nothing but rounding.

    The loss is over the old ids, on samples of the old segmentation; elements born in the event do not count.
    """
    assert plan.old is not None
    vocab = min(plan.old.sizes["vocab"], arch.sizes["vocab"])
    before, after = (_gradients(a, read, probe, vocab) for a, read in ((plan.old, old), (arch, new)))
    errors = {}
    for name, tensor in plan.new.tensors().items():
        box = Box.whole(tensor.shape)
        expected = plan.evaluate(name, box, lambda _, name, box: before[name][box.slices()], "exp_avg")
        kept = ~plan.new_mask(name, box)
        if kept.any():
            found = after[name][kept]
            errors[name] = float((expected[kept] - found).abs().max() / found.abs().max().clamp_min(1e-300))
    return errors


def _gradients(arch: Architecture, read: Read, probe: Samples, vocab: int) -> dict[str, torch.Tensor]:
    weights = {
        name: read("weight", name, Box.whole(t.shape)).double().requires_grad_() for name, t in arch.tensors().items()
    }

    def model(kind: str, name: str, box: Box) -> torch.Tensor:
        return weights[name][box.slices()]

    loss = objective(model, arch, probe, torch.float64, vocab)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
