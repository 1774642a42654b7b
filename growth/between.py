"""The plan from one architecture to the next: operators are inferred from the difference, policies choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.operators import AXES, OPERATORS, Operator
from growth.plan import Plan, merge
from growth.step import Step

DEFAULTS = {"layers": "identity", "hidden": "zero", "heads": "zero", "ffn": "zero", "vocab": "random"}


def between(
    old: Architecture,
    new: Architecture,
    policy: Mapping[str, Any] | None = None,
    *,
    seed: int,
    init_std: float,
    pieces: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """The plan that grows `old` to the sizes of `new`.

    `policy` names for each axis an operator, or a mapping {"operator": name, option: value, ...}; axes that do not
    grow ignore theirs. The scalars of `new` are not used: they follow from those of `old` and the operators, and the
    plan's `new` holds them. `pieces` are the old ids that spell each new token, for the vocabulary.
    Raises GrowthError for another family, a shrinking axis, an unknown policy, and what an operator cannot do.
    """
    if new.family != old.family:
        raise GrowthError(f"a {old.family} cannot grow into a {new.family}: keep the parent's family")
    chosen = {key: _choose(key, value) for key, value in {**DEFAULTS, **(policy or {})}.items()}
    for axis, size in new.sizes.items():
        if size < old.sizes[axis]:
            raise GrowthError(
                f"{axis} would shrink from {old.sizes[axis]} to {size}: a stage keeps or grows every axis; "
                f"set {axis} to at least {old.sizes[axis]}"
            )
    arch, steps = old, list[Step]()
    for key, axes in AXES.items():
        target = {axis: new.sizes[axis] for axis in axes if axis in new.sizes}
        if all(arch.sizes[axis] == size for axis, size in target.items()):
            continue
        if key not in chosen:
            raise GrowthError(
                f"{key} cannot grow from {arch.sizes[key]} to {target[key]}: no operator changes it; keep {key} at "
                f"{arch.sizes[key]}"
            )
        operator, options = chosen[key]
        steps.append(operator(arch, target, options, {"seed": seed, "pieces": pieces}))
        arch = steps[-1].new
    return Plan(old, arch, merge(tuple(steps)), seed, init_std)


def _choose(key: str, value: Any) -> tuple[Operator, dict[str, Any]]:
    if key not in OPERATORS or not OPERATORS[key]:
        known = ", ".join(k for k, found in OPERATORS.items() if found)
        raise GrowthError(f"a growth policy has no key {key!r}: its keys are {known}")
    options = dict(value) if isinstance(value, Mapping) else {"operator": value}
    name = options.pop("operator", DEFAULTS.get(key))
    if name not in OPERATORS[key]:
        raise GrowthError(f"{key}: there is no operator {name!r}: choose one of {', '.join(OPERATORS[key])}")
    return OPERATORS[key][name], options
