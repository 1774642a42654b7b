"""The register of operators: what the policy of an axis may name, and with which options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.step import Step

# The order in which the operators of one event apply; a policy key stands for all of its axes.
AXES: dict[str, tuple[str, ...]] = {
    "layers": ("layers",),
    "hidden": ("hidden",),
    "heads": ("heads", "kv_heads"),
    "head_dim": ("head_dim",),
    "ffn": ("ffn",),
    "vocab": ("vocab",),
    "positions": ("positions",),
}

# What an operator may ask for by naming the parameter; everything else after `sizes` is an option of its policy.
# `grown` is the architecture that the operator makes, as far as it is not the operator's to say.
CONTEXT = ("seed", "pieces", "grown")


@dataclass(frozen=True)
class Operator:
    """`make(arch, sizes, **options)` returns the step that takes the axes of `key` to `sizes`; `shrinks` if these are
    smaller than the old ones."""

    key: str
    name: str
    make: Callable[..., Step]
    shrinks: bool

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(p for p in list(inspect.signature(self.make).parameters)[2:] if p not in CONTEXT)

    def __call__(
        self, arch: Architecture, sizes: Mapping[str, int], options: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Step:
        """The step; raises GrowthError for an option that the operator does not have, or lacks."""
        parameters = inspect.signature(self.make).parameters
        if unknown := sorted(set(options) - set(self.options)):
            known = ", ".join(self.options) or "none"
            raise GrowthError(f"{self.key}: {self.name} has no option {', '.join(unknown)}; it has {known}")
        if lacking := [
            o for o in self.options if parameters[o].default is inspect.Parameter.empty and o not in options
        ]:
            raise GrowthError(f"{self.key}: {self.name} needs the option {', '.join(lacking)}")
        asked = {k: v for k, v in context.items() if k in parameters}
        step = self.make(arch, sizes, **asked, **options)
        return replace(step, operators=(f"{self.key}: {self.name}",))


OPERATORS: dict[str, dict[str, Operator]] = {key: {} for key in AXES}


def operator(key: str, name: str, *, shrinks: bool = False) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    """Register a function (arch, sizes, **options) -> Step under the policy key of its axis."""

    def register(make: Callable[..., Step]) -> Callable[..., Step]:
        OPERATORS[key][name] = Operator(key, name, make, shrinks)
        return make

    return register


def default(old: Architecture, new: Architecture, key: str) -> str:
    """The operator of a policy key for which the user of a growth has named none."""
    if key == "head_dim":
        return "rotary" if "rope_theta" in old.table.scalars else "zero"
    if key == "layers" and old.shared and new.depth == old.depth:
        return "untie"
    return {"layers": "identity", "vocab": "pieces", "positions": "random"}.get(key, "zero")
