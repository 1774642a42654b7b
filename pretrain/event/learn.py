"""The maps of a growth event, learned before it happens, on the stage's own text: LiGO (Wang et al. 2023, "Learning to
grow pretrained models for efficient transformer training", section 3).

One process learns them, with a reference model in plain PyTorch. What grows and is not learned grows first, as the
stage says; but with the channels of heads mixed, head_dim grows after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box, Plan, between
from growth.evaluate.box_values import Read
from growth.learn import Learner, with_axes
from pretrain.checkpoint import Reader
from pretrain.config import LEARNED, Curriculum, Learn, Stage, factor_files
from pretrain.errors import UserError
from pretrain.estimate.flops import learning_flops
from pretrain.event.plan import plan_of
from pretrain.families.reference import objective
from pretrain.families.text import open_feed
from pretrain.runtime import progress_files
from pretrain.runtime.files import make_folder
from pretrain.verify import audit

INTERVAL = 10  # steps after which the state is saved


@dataclass(frozen=True)
class Learned:
    """What was learned. policy: keys of `grow`, which name the file of factors. losses: of all steps, in nats.
    held_out: the loss on held-out text of the copies that it starts from, "start", and of what was "learned"; flops:
    model FLOPs of all steps."""

    policy: dict[str, Any]
    losses: list[float]
    held_out: dict[str, float]
    flops: float


class Learning:
    """Steps of Adam on the factors of a stage's growth from the checkpoint that a reader has open.

    target: the file of factors; beside it lies what another start goes on from, see `save`. Raises UserError
    where nothing grows that is learned, and where there is not enough memory; GrowthError for a growth that is
    impossible.
    """

    def __init__(self, curriculum: Curriculum, stage: Stage, reader: Reader, target: Path, how: Learn) -> None:
        self._how, self.target = how, target
        old = Architecture.from_json(reader.manifest.architecture)
        final = stage.model.architecture()
        if not (keys := how.keys(old, final)):
            only = ", ".join(how.only or LEARNED)
            raise UserError(f"stage {stage.name!r} grows nothing that is learned ({only})")
        reduced = _reduced(stage, old, keys)
        self._feed = open_feed(reduced)
        self._feed.seek(None)
        self._first = plan_of(curriculum, reduced, reader.manifest, self._feed.tokenizer)
        self._new = with_axes(self._first.new, [axis for key in keys for axis in LEARNED[key]], final)
        if (need := audit.needed(self._new)) > (free := audit.free_memory()):
            raise UserError(
                f"learning needs about {need / 1e9:.3g} GB of memory and {free / 1e9:.3g} GB are free: take a larger "
                "machine"
            )
        self._held_out = self._feed.batch(how.batch)
        self._read = partial(_through, self._first, reader.read)
        self._learner = Learner(self._read, self._first.new, self._new, lr=how.lr)
        self._copies = self._learner.policy()
        self._about = {"parent": reader.manifest.hash, "stage": stage.name, "lr": str(how.lr)}
        factors = {key: sorted(options) for key, options in self._copies.items()}
        self._learns = {**self._about, "config": stage.to_dict(), "factors": factors, "batch": how.batch}
        self._seq_len, self._losses = stage.train.seq_len, list[float]()

    @property
    def progress(self) -> Path:
        """The file with the learner's state."""
        return self.target.with_name(f".{self.target.name}.progress")

    def resume(self) -> int:
        """Goes on after the steps of an earlier run that learned the same; returns how many these are."""
        stored = progress_files.read(self.progress)
        if stored and stored[1]["learns"] == self._learns and len(stored[1]["losses"]) <= self._how.steps:
            state, about = stored
            self._learner.restore(state)
            self._feed.seek(about["cursor"])
            self._losses = about["losses"]
        return self._learner.steps

    @property
    def done(self) -> bool:
        """Whether all steps have been made."""
        return self._learner.steps >= self._how.steps

    def step(self) -> float:
        """One step more; returns its loss, in nats. Every so many steps (`INTERVAL`) the state is saved. Raises
        UserError for a loss that is not finite."""
        samples = self._feed.take(self._how.batch, 0.0, 0, 1).samples
        loss = self._learner.step(partial(objective, arch=self._new, samples=samples))
        self._losses.append(loss)
        if not math.isfinite(loss):
            self.progress.unlink(missing_ok=True)
            raise UserError(f"the loss is {loss} at step {self._learner.steps}: take a smaller learning rate")
        if self._learner.steps % INTERVAL == 0:
            self.save()
        return loss

    def save(self) -> None:
        """Writes what another start goes on from."""
        about = {"learns": self._learns, "cursor": self._feed.cursor, "losses": self._losses}
        progress_files.write(self.progress, self._learner.state(), about)

    def finish(self) -> Learned:
        """Writes the factors, and measures them."""
        learned = self._learner.policy()
        make_folder(self.target.absolute().parent)
        factor_files.write(self.target, learned, {**self._about, "steps": str(self._learner.steps)})
        policy = {key: {"operator": "dense", factor_files.OPTION: str(self.target)} for key in learned}
        measured = {"start": self._loss(self._copies), "learned": self._loss(factor_files.filled(policy))}
        flops = learning_flops(self._first.new, self._new, self._seq_len, self._how)
        return Learned(policy, self._losses, measured, flops)

    def _loss(self, policy: Mapping[str, Any]) -> float:
        """The loss of the model that the plan of this policy makes."""
        plan = between(self._first.new, self._new, dict(policy), seed=0, init_std=0.0)
        tensors = self._new.tensors()
        weights = {name: _through(plan, self._read, "weight", name, Box.whole(t.shape)) for name, t in tensors.items()}
        with torch.no_grad():
            return float(objective(lambda kind, name, box: weights[name][box.slices()], plan.new, self._held_out))


def _reduced(stage: Stage, old: Architecture, keys: list[str]) -> Stage:
    """The stage with what is learned left as it is in the old model, so that the rest grows first."""
    sizes: dict[str, Any] = {axis: old.sizes[axis] for key in keys for axis in LEARNED[key] if axis in old.sizes}
    if "layers" in keys:
        sizes |= {"layers": old.depth, "share": old.depth // old.layers}
    if "heads" in keys:  # Their channels are mixed, as they are before head_dim grows.
        sizes |= {"head_dim": old.sizes["head_dim"], "kv_heads": old.sizes.get("kv_heads", old.sizes["heads"])}
    default = type(stage.grow)()
    grow = replace(stage.grow, **{key: getattr(default, key) for key in keys})
    return replace(stage, model=replace(stage.model, **sizes), grow=grow)


def _through(plan: Plan, read: Read, kind: str, name: str, box: Box) -> torch.Tensor:
    return plan.evaluate(name, box, read, kind)
