"""The plan from one architecture to the next: operators are inferred from the difference, policies choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.family import LAYERS
from growth.moments import DEFAULT_MOMENTS, Moments
from growth.mup import Mup
from growth.operators import AXES, OPERATORS, Operator, default
from growth.plan import Plan, merge
from growth.step import Step, attaching, merging


def between(
    old: Architecture,
    new: Architecture,
    policy: Mapping[str, Any] | None = None,
    *,
    seed: int,
    init_std: float,
    pieces: Sequence[Sequence[int]] | None = None,
    mup: Mup | None = None,
) -> Plan:
    """The plan that grows `old` to the sizes and blocks of `new`.

    `policy` names for each axis an operator, or a mapping {"operator": name, option: value, ...}; axes that do not
    grow ignore theirs. Its key "moments" is "transform", "copy" or "reset", or a mapping of "old" and "new" to these.
    Adapters of `old` are merged before anything grows, and those of `new` attached afresh after it, even where nothing
    grows. The scalars of `new` are not used: they follow from those of `old` and the operators, and the plan's `new`
    holds them. `pieces` are, for each new token, the old ids that spell it: the vocabulary needs them unless its policy
    is another than the default. `mup` multiplies the init of what is new.
    Raises GrowthError for another family, other spans or streams, an unknown policy, an axis that shrinks without an
    operator that was named for it, and what an operator cannot do.
    """
    if new.family != old.family:
        raise GrowthError(f"a {old.family} cannot grow into a {new.family}: keep the parent's family")
    if new.span != old.span:
        raise GrowthError(f"spans of heads: {_in_words(old)} cannot become {_in_words(new)}: keep the parent's")
    before, after = (", ".join(_leading(arch)) for arch in (old, new))
    if after != before:
        raise GrowthError(
            f"layers: {before} cannot become {after}: what leads from one stream to another is never the identity, and "
            "what is predicted follows from it; keep these, and add others"
        )
    given = dict(policy or {})
    moments = _moments(given.pop("moments", {}))
    chosen = {key: _choose(key, value, old, new) for key, value in given.items()}
    steps = [merging(old)] if old.adapters else list[Step]()
    arch = old.with_adapters(None)
    for key, axes in AXES.items():
        target = {axis: new.sizes[axis] for axis in axes if axis in new.sizes}
        blocks = new if key == LAYERS else arch
        grown = arch.replace(target, kinds=blocks.kinds, calls=blocks.calls)
        if grown == arch:
            continue
        operator, options = chosen.get(key) or _choose(key, {}, old, new)
        for axis, size in target.items():
            _check_direction(operator, axis, arch.sizes[axis], size)
        steps.append(operator(arch, target, options, {"seed": seed, "pieces": pieces, "grown": grown}))
        arch = steps[-1].new
    if remaining := [axis for axis in arch.sizes if arch.sizes[axis] != new.sizes[axis]]:
        axis = remaining[0]
        raise GrowthError(
            f"{axis} is {old.sizes[axis]} in every {old.family} of this lineage: keep it, not {new.sizes[axis]}"
        )
    if new.adapters:
        steps.append(attaching(arch, new.adapters))
        arch = steps[-1].new
    if not steps and moments.old == "reset":
        steps.append(Step(arch, arch, ("moments: reset",), True))  # There is nothing else to do.
    return Plan(old, arch, merge(tuple(replace(s, moments=moments) for s in steps)), seed, init_std, mup)


def _check_direction(operator: Operator, axis: str, old: int, new: int) -> None:
    if new < old and not operator.shrinks:
        shrinking = [o.name for o in OPERATORS[operator.key].values() if o.shrinks]
        way = f", or name the operator {' or '.join(shrinking)}" if shrinking else ""
        raise GrowthError(
            f"{axis} would shrink from {old} to {new}: a stage keeps or grows every axis; set {axis} to at least "
            f"{old}{way}"
        )
    if new > old and operator.shrinks:
        raise GrowthError(f"{axis}: {old} to {new} grows, but {operator.name} makes it smaller: name another operator")


def _leading(arch: Architecture) -> list[str]:
    """The kinds, in order, of the blocks that give another stream than they take."""
    return [kind for kind, _ in arch.blocks if arch.table.streams and len({*arch.table.through(kind)}) > 1]


def _in_words(arch: Architecture) -> str:
    return f"at most {arch.span.max}, with a ramp of {arch.span.ramp}" if arch.span else "none"


def _moments(value: Any) -> Moments:
    if isinstance(value, str):
        return Moments(value, "reset" if value == "reset" else DEFAULT_MOMENTS.new)  # type: ignore[arg-type]
    if not isinstance(value, Mapping) or set(value) - {"old", "new"}:
        raise GrowthError(f"moments is {value!r}: choose transform, copy or reset, or map old and new to these")
    return Moments(**value)


def _choose(key: str, value: Any, old: Architecture, new: Architecture) -> tuple[Operator, dict[str, Any]]:
    if key not in OPERATORS:
        raise GrowthError(f"a growth policy has no key {key!r}: its keys are {', '.join(OPERATORS)}, moments")
    options = dict(value) if isinstance(value, Mapping) else {"operator": value}
    name = options.pop("operator", default(old, new, key))
    if not isinstance(name, str) or name not in OPERATORS[key]:
        raise GrowthError(f"{key}: there is no operator {name!r}: choose one of {', '.join(OPERATORS[key])}")
    return OPERATORS[key][name], options
