"""Plans: how every element of a new model is made of an old one, evaluated lazily on any box of any tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch

from growth.adapters import factors, merged
from growth.architecture import Architecture, in_words
from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.box_values import FreshInit, evaluate, init
from growth.evaluate.recipe import Recipe, check_box
from growth.evaluate.sources import MixCache, Read
from growth.generations import Generations
from growth.mup import Mup
from growth.step import Step

FORMAT = 2


@dataclass(frozen=True, eq=False)
class Plan:
    """A growth event: `steps` lead from `old` to `new`; step n reads through step n - 1. Without `old` the model is
    initialised afresh; without steps it is the old one. `seed` and `init_std` make fresh elements, with the factors of
    `mup` if that is given."""

    old: Architecture | None
    new: Architecture
    steps: tuple[Step, ...]
    seed: int
    init_std: float
    mup: Mup | None = None

    def __post_init__(self) -> None:
        shapes = [self.old, *(s.new for s in self.steps)]
        if self.old is None and self.steps:
            raise GrowthError("a plan without a parent has no steps")
        if self.old is not None and (shapes[-1] != self.new or [s.old for s in self.steps] != shapes[:-1]):
            raise GrowthError("the steps of a plan must lead from its old architecture to its new one")

    @property
    def preserves(self) -> bool:
        """Whether every operator claims to keep the function (over old ids, where the vocabulary grows)."""
        return self.old is not None and all(s.preserves for s in self.steps)

    @property
    def approximate(self) -> tuple[str, ...]:
        """Where transformed moments are only near what they should be, in words."""
        return tuple(a for s in self.steps for a in s.approximate)

    @property
    def operators(self) -> tuple[str, ...]:
        """The names of the operators, in order."""
        return ("initial",) if self.old is None else tuple(o for s in self.steps for o in s.operators)

    def evaluate(
        self,
        name: str,
        box: Box,
        read: Read,
        kind: str = "weight",
        dtype: torch.dtype = torch.float32,
        out: torch.Tensor | None = None,
        cache: MixCache | None = None,
    ) -> torch.Tensor:
        """The region `box` of the new tensor `name`, or of its "exp_avg" or "exp_avg_sq".

        `read(kind, old_name, old_box)` returns that region of an old tensor, of exactly that shape; arithmetic is in
        `dtype` (float32 or float64). The result is `out`, written to, if that is given (a tensor of the box's shape, of
        any strides); else it may be what `read` returned: copy before writing into it. It does not depend on how a
        tensor is cut into boxes, bit for bit. A dictionary `cache`, given with every box of one plan and one `read`,
        spares each box what all boxes of a tensor need, such as the mean of its rows.
        Raises GrowthError for a name, box or kind that the new model does not have.
        """
        if self.old is None:
            tensor = self.new.tensor(name)
            check_box(tensor, box, kind)
            if kind != "weight":
                value = torch.zeros(box.shape, dtype=dtype) if out is None else out.zero_()
            else:
                value = init(tensor, box, self._fresh_init(self.seed, self.new)).to(dtype)
        else:
            place = out if out is not None and out.dtype == dtype else None
            value = self._through(len(self.steps), name, box, read, kind, dtype, place, cache)
        return value if out is None or value is out else out.copy_(value)

    @cached_property
    def _fresh(self) -> tuple[FreshInit, ...]:
        """What the fresh elements of each step are drawn with."""
        return tuple(self._fresh_init(draws(self.seed, s.old), s.new) for s in self.steps)

    def _fresh_init(self, seed: int, arch: Architecture) -> FreshInit:
        factors = {row.name: self.mup.factors(arch, row).init for row in arch.rows} if self.mup else {}
        return FreshInit(seed, self.init_std, arch.branches, factors)

    def _through(
        self,
        n: int,
        name: str,
        box: Box,
        read: Read,
        kind: str,
        dtype: torch.dtype,
        out: torch.Tensor | None = None,
        cache: MixCache | None = None,
    ) -> torch.Tensor:
        """The box after the first n steps; in `out` if that is given and the way to it allows."""
        if n == 0:
            assert self.old is not None
            check_box(self.old.tensor(name), box, kind)
            return read(kind, name, box).to(dtype)
        step = self.steps[n - 1]

        def earlier(kind: str, name: str, box: Box) -> torch.Tensor:
            return self._through(n - 1, name, box, read, kind, dtype, None, cache)

        if kind == "weight" and (adapter := step.merged(name)):
            check_box(step.new.tensor(name), box, kind)
            assert step.old.adapters is not None
            pair = zip(adapter, factors(box, step.old.adapters.rank), strict=True)
            a, b = (earlier(kind, which, part) for which, part in pair)
            return merged(earlier(kind, name, box), a, b, step.old.adapters.scale)
        own = None if cache is None else cache.setdefault(n, {})
        parts = [(part, step.maps.recipe(name, part, kind)) for part in step.maps.cuts(name, box)]

        def value_of(recipe: Recipe, place: torch.Tensor | None) -> torch.Tensor:
            return evaluate(recipe, kind, earlier, self._fresh[n - 1], dtype, place, own)

        if len(parts) == 1:
            return value_of(parts[0][1], out)
        whole = torch.empty(box.shape, dtype=dtype) if out is None else out
        for part, recipe in parts:
            place = whole[part.relative_to(box).slices()]
            value = value_of(recipe, place)
            if value is not place:
                place.copy_(value)
        return whole

    def reads(self, name: str, box: Box, kind: str = "weight") -> Iterator[tuple[str, Box]]:
        """The (old_name, old_box) that `evaluate` would read, in order; without repeats for a plan of one step."""
        if self.old is None:
            check_box(self.new.tensor(name), box, kind)
            return
        yield from self._reads(len(self.steps), name, box, kind)

    def _reads(self, n: int, name: str, box: Box, kind: str) -> Iterator[tuple[str, Box]]:
        if n == 0:
            yield name, box
            return
        step = self.steps[n - 1]
        if kind == "weight" and (adapter := step.merged(name)):
            assert step.old.adapters is not None
            for which, part in zip(adapter, factors(box, step.old.adapters.rank), strict=True):
                yield from self._reads(n - 1, which, part, kind)
        maps = step.maps
        for part in maps.cuts(name, box):
            recipe = maps.recipe(name, part, kind)
            for source in recipe.sources:
                for old in recipe.reads():
                    yield from self._reads(n - 1, source.name, old, kind)

    def generations(self, old: Generations | None = None) -> Generations:
        """The generations of the new model from those of the old one (none for a model without a parent)."""
        if self.old is None:
            return Generations.first(self.new)
        if old is None:
            raise GrowthError("the generations of a grown model follow from those of the old one: give them")
        return old.grow(self.steps)

    def new_mask(self, name: str, box: Box) -> torch.Tensor:
        """bool of `box.shape`: the elements born in this event (all of them for a model without a parent)."""
        tensor = self.new.tensor(name)
        if self.old is None:
            return torch.ones(box.shape, dtype=torch.bool)
        return Generations.first(self.old).grow(self.steps, by_moments=False).of(tensor, box) > 0

    def then(self, later: Plan) -> Plan:
        """This plan and then another one, as one event; neighbouring steps on different axes become one step.

        Raises GrowthError unless `later` begins where this plan ends.
        """
        if later.old != self.new:
            raise GrowthError(f"a plan for {_sizes(later.old)} cannot follow one that ends at {_sizes(self.new)}")
        return Plan(self.old, later.new, merge((*self.steps, *later.steps)), self.seed, self.init_std, self.mup)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "old": self.old.to_json() if self.old else None,
            "new": self.new.to_json(),
            "seed": self.seed,
            "init_std": self.init_std,
            "steps": [s.to_json() for s in self.steps],
            **({"mup": self.mup.to_json()} if self.mup else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Raises GrowthError for a plan of another format, and for one whose steps do not fit together."""
        if not 1 <= data["format"] <= FORMAT:  # in the first one there are only the usual blocks
            raise GrowthError(f"the plan has format {data['format']}, but this version reads formats 1 to {FORMAT}")
        old = Architecture.from_json(data["old"]) if data["old"] else None
        steps: list[Step] = []
        for step in data["steps"]:
            before = steps[-1].new if steps else old
            if before is None:
                raise GrowthError("a plan without a parent has no steps")
            steps.append(Step.from_json(before, step))
        mup = Mup.from_json(data["mup"]) if "mup" in data else None
        return Plan(old, Architecture.from_json(data["new"]), tuple(steps), data["seed"], data["init_std"], mup)


def _sizes(arch: Architecture | None) -> str:
    return "nothing" if arch is None else f"{arch.family} {dict(arch.sizes)} {dict(arch.scalars)} {in_words(arch)}"


def draws(seed: int, old: Architecture) -> int:
    """The seed of what a step draws that starts from `old`: two events of one lineage, or two steps of one plan, must
    not draw the same numbers for a tensor of one name."""
    data = old.to_json()
    text = json.dumps([seed, old.family, dict(old.sizes), *(data[key] for key in ("kinds", "calls") if key in data)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def merge(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same steps with neighbours on different axes merged into one."""
    merged: list[Step] = []
    for step in steps:
        joint = merged[-1].merge(step) if merged else None
        if joint:
            merged[-1] = joint
        else:
            merged.append(step)
    return tuple(merged)


def initial(arch: Architecture, seed: int, init_std: float, mup: Mup | None = None) -> Plan:
    """A growth from nothing: normal with standard deviation `init_std`, in residual branches `init_std` over
    sqrt(2 * blocks) (Radford et al., 2019, section 2.3); norms one, biases zero; times the factors of `mup`."""
    return Plan(None, arch, (), seed, init_std, mup)


def identity(arch: Architecture) -> Plan:
    """A resume: the same model."""
    return Plan(arch, arch, (), 0, 0.0)
