"""The keys of a curriculum under `grow`, and its patches: what growth events do."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from growth import Architecture
from pretrain.config.kinds import Candidates, Count, Derived, Operator, Positive
from pretrain.config.section import Section


@dataclass(frozen=True)
class Trial(Section):
    """Ways to grow of which each is tried, and the one taken whose held-out loss is the smallest some steps later (LAG,
    Karp et al. 2024). All start from the same checkpoint and see the same data."""

    candidates: Candidates = ()
    """What each has instead of the operators and moments of `grow`: [{layers: stack}, {layers: identity}], say; empty:
    nothing is tried."""
    steps: Positive = 100
    """Optimizer steps of each."""


LEARNED = {"layers": ("layers",), "hidden": ("hidden",), "heads": ("heads", "kv_heads"), "ffn": ("ffn",)}
"""The keys of `grow` whose maps can be learned, and the axes that each is about."""


@dataclass(frozen=True)
class Learn(Section):
    """The maps of the event, learned before it happens (LiGO, Wang et al. 2023): new weights are linear maps of old
    ones, A W B, and sums over layers; some steps of Adam on these factors alone start from copies and make the best of
    them, on the stage's text from its beginning. By the first rank, on its CPU; see tools/learn_growth.py."""

    steps: Derived = 0
    """Steps on the factors; 0 or absent: nothing is learned."""
    batch: Positive = 8
    """Samples of a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the factors."""
    only: tuple[Literal["layers", "hidden", "heads", "ffn"], ...] = ()
    """What is learned, in place of the operators of `grow`; empty: all of it that grows."""

    def keys(self, old: Architecture, new: Architecture) -> list[str]:
        """Of what grows from one model to the other, what is learned."""
        grows = [key for key, axes in LEARNED.items() if any(old.sizes.get(a) != new.sizes.get(a) for a in axes)]
        return [key for key in self.only or LEARNED if key in grows]


@dataclass(frozen=True)
class Grow(Section):
    """What the growth event at which this stage starts does to each axis that grows; unused by the first stage.

    An operator by name, or with options: {operator: NAME, OPTION: VALUE}. See growth/operators. Of dense, the option
    `factors` names a file of tools/learn_growth.py. In a file, {recipe: NAME} stands for the keys of a published
    recipe; see pretrain/config/recipes.py.
    """

    OPERATORS: ClassVar = ("layers", "hidden", "heads", "ffn", "vocab", "head_dim", "positions", "moments")

    layers: Operator = "identity"
    """identity: new layers whose output projections are zero, spread between the old ones; untie where there are as
    many as before and fewer share their weights (model.share). Both keep the function."""
    hidden: Operator = "zero"
    """zero: new channels that nothing writes yet; keeps the function."""
    heads: Operator = "zero"
    """zero: new heads whose output is not used yet; keeps the function."""
    ffn: Operator = "zero"
    """zero: new neurons whose output is not used yet; keeps the function."""
    vocab: Operator = "pieces"
    """pieces (the mean of the rows that wrote the new token before: best of these in bits per byte), mean (of all old
    rows), zero or random."""
    head_dim: Operator = "default"
    """rotary where the family has rotary embeddings (whole factors; rotary_table: any), else zero; all keep the
    function."""
    positions: Operator = "random"
    """random: new positions as in a fresh model; keeps the function of samples that are no longer than before."""
    moments: Literal["default", "transform", "copy", "reset"] = "default"
    """Adam's moments of what is old, and of what is made of it: transform (as their gradients), copy, or reset (zero,
    and all parts count as new from then on); default: transform what is old, reset what is new (level with the best of
    these in configs/comparisons)."""
    schedule: Literal["continue", "rewind", "rewarm", "restart"] = "rewarm"
    """What the event that begins the stage does to the learning rate, for good. rewarm: old parts go on at the rate
    they have, what is new has the schedule from its beginning. continue: what is new joins the old parts at their
    rate. rewind: likewise, after the schedule is set back by `rewind`. restart: all has it from its beginning.
    Measured in configs/comparisons with one event half-way: rewind ends 0.2 % below rewarm, continue 0.4 % and restart
    1.8 % above it. rewarm is the default as the best that leaves what has been learned as it was, however many events
    there are; layers that come inside a stage (patches) always join."""
    rewind: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the way along the schedule that a rewind undoes."""
    new_lr: Annotated[float, Field(ge=0)] = 1.0
    """Multiple of the learning rate that what is new has, now and in later stages."""
    new_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of what is new, now and in later stages; absent: train.weight_decay."""
    old_lr: Annotated[float, Field(ge=0)] = 1.0
    """Multiple of the learning rate that everything older than this stage has during it; 0 freezes it."""
    clip: Literal["keep", "scale"] = "keep"
    """What the event does to train.clip, for good. keep: nothing. scale: multiply it by what the event multiplied the
    gradient's norm by, on the same batch of held-out text, so that as much is clipped as before."""
    trial: Trial = Trial()
    """Choose the operators by trial."""
    learn: Learn = Learn()
    """Learn the maps of the event."""
    condense: bool = False
    """Let all generations but the newest two learn as one from here on, at their mean rate by tokens."""

    def policy(self) -> dict[str, Any]:
        """The policy that growth.between takes: operators by key, and what moments become."""
        usual = {key.name: key.default for key in fields(self)}  # growth's own, where nothing is named
        chosen = {key: getattr(self, key) for key in self.OPERATORS if getattr(self, key) != usual[key]}
        if "moments" in chosen:  # for growth, which takes this word to mean what is old only
            chosen["moments"] = {"old": self.moments, "new": self.moments}
        return chosen

    def mapped(self, maps: Mapping[str, Any]) -> "Grow":
        """The same settings with these maps, which were learned."""
        return replace(self, learn=Learn(), **maps)

    def tried(self, candidate: Mapping[str, Any]) -> "Grow":
        """The same settings with the operators of one candidate of the trial."""
        return replace(self, **candidate)


@dataclass(frozen=True)
class Patch(Section):
    """One layer more, inside a stage."""

    at: Annotated[float, Field(gt=0, lt=1)]
    """When, as a share of the stage's tokens; at the first step that has them."""
    index: Count
    """Position of the new layer in the resulting list, as in Python's list.insert."""
    source: Literal["clone", "random"] = "clone"
    """What it starts as: a copy of the layer before it (at 0: of the first), or a fresh layer."""
