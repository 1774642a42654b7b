"""Deeper: operators on the layers. Each chooses for every new layer the old one of its kind that it is made of, and an
`init`:

copy    as it is
zero    a copy whose residual branches (o_proj, down_proj and their biases) are zero, hence the identity in a pre-norm
        model: exact
random  a fresh layer

and a `noise`: the standard deviation of the relative noise on the matrices of new layers that are made of old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from growth.architecture import Architecture, in_words
from growth.errors import GrowthError
from growth.maps import LayerMap
from growth.operators.registry import operator
from growth.step import Step

INITS = ("copy", "zero", "random")
LOUDEST = 1e6  # noise, in standard deviations of what it is added to


Made = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]
"""Of each new layer its source ([new] or [new, K], -1 for none), whether it is born, and the coefficients, if any."""


def _first(source: np.ndarray) -> np.ndarray:
    """Whether a source is named for the first time: that layer is the old one, the others are new."""
    first = np.zeros(len(source), dtype=bool)
    first[np.unique(source, return_index=True)[1]] = True
    return first


def _like_to_like(arch: Architecture, grown: Architecture, rule: Callable[[int, int], Made]) -> tuple[np.ndarray, ...]:
    """Source, birth and coefficient of every new layer, from a rule(old, new) for the layers of one kind: the n-th
    layer of a kind is to the others of its kind what the n-th layer of a usual model is to its others."""
    made = []
    for kind in dict.fromkeys((*arch.kinds, *grown.kinds)):
        old, new = (np.flatnonzero([k == kind for k in a.kinds]) for a in (arch, grown))
        source, born, *coefficient = rule(len(old), len(new))
        of_kind = np.asarray(source, dtype=np.int64)
        of_kind = of_kind[:, None] if of_kind.ndim == 1 else of_kind
        factor = np.broadcast_to(coefficient[0] if coefficient else 1.0, of_kind.shape)
        made.append((new, np.append(old, -1)[of_kind], np.asarray(born, dtype=bool), factor))
    most = max((source.shape[1] for _, source, _, _ in made), default=1)
    sources, births = np.full((grown.layers, most), -1), np.zeros(grown.layers, dtype=bool)
    coefficients = np.ones((grown.layers, most))
    for new, source, born, factor in made:
        sources[new, : source.shape[1]], births[new], coefficients[new, : source.shape[1]] = source, born, factor
    return sources, births, coefficients


def _step(
    arch: Architecture,
    grown: Architecture,
    made: Sequence[ArrayLike],
    inits: Sequence[str],
    noise: float = 0.0,
) -> Step:
    """The step of a source, a birth, coefficients and an init for each layer."""
    if unknown := sorted({str(i) for i in inits} - set(INITS)):
        raise GrowthError(f"layers: there is no init {', '.join(unknown)}: choose one of {', '.join(INITS)}")
    born = np.asarray(made[1], dtype=bool)
    src = np.asarray(made[0], dtype=np.int64).reshape(len(born), -1)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= LOUDEST:
        raise GrowthError(f"layers: noise is {noise!r}: give a relative standard deviation from 0 to {LOUDEST:g}")
    random = born & np.array([i == "random" for i in inits], dtype=bool)
    zero = born & np.array([i == "zero" for i in inits], dtype=bool)
    m = LayerMap.make(
        arch.layers,
        np.where(random[:, None], -1, src),
        born=born | (src[:, 0] < 0),
        zero_branch=zero,
        coefficient=made[2],
        noise=np.where(born, noise, 0.0),
    )
    kept = tuple(int(src[layer, 0]) for layer in grown.calls if not born[layer])
    return Step(arch, grown, (), kept == arch.calls and bool(zero[born].all()), m)


def _grow(
    arch: Architecture, grown: Architecture, name: str, rule: Callable[[int, int], Made], init: str, noise: float
) -> Step:
    """The step of an operator that makes layers of old ones, with a rule as in `_like_to_like`."""

    def checked(old: int, new: int) -> Made:
        if old == 0 and new:
            raise GrowthError(
                f"layers: {name} needs an old layer to copy and there is none; use insert with init random"
            )
        if new < old:
            raise GrowthError(f"layers: {old} of a kind cannot become {new}: keep or grow the number of each kind")
        return rule(old, new) if new else ((), ())

    return _step(arch, grown, _like_to_like(arch, grown, checked), [init] * grown.layers, noise)


@operator("layers", "identity")
def identity_layers(
    arch: Architecture, sizes: Mapping[str, int], grown: Architecture, init: str = "zero", noise: float = 0.0
) -> Step:
    """New layers spread evenly between the old ones, each made of the layer before it: by default a copy with a zero
    branch. Wu et al., 2024, "LLaMA Pro", section 3.2. Of several kinds, it is made of the one of its own kind before
    it. Raises GrowthError where the new kinds do not contain the old ones in order."""
    place = _places(arch, grown)
    born = ~np.isin(np.arange(grown.layers), place)
    source = np.full(grown.layers, -1)
    for kind in set(arch.kinds):
        news = np.flatnonzero([k == kind for k in grown.kinds])
        olds = np.array([i for i in range(arch.layers) if arch.kinds[i] == kind])
        source[news] = olds[np.maximum(np.cumsum(~born[news]) - 1, 0)]
    return _step(arch, grown, (source, born, 1.0), [init] * grown.layers, noise)


def _places(arch: Architecture, grown: Architecture) -> np.ndarray:
    """Of each old layer its place among the new ones: of its kind, in order, as evenly spread as that allows."""
    old, new = arch.layers, grown.layers
    latest, at = [0] * old, new  # so that those behind it still find a place
    for i in reversed(range(old)):
        at = next((j for j in reversed(range(at)) if grown.kinds[j] == arch.kinds[i]), -1)
        if at < 0:
            raise GrowthError(
                "layers: identity keeps the old layers in order, and the new kinds do not contain theirs in order "
                f"({in_words(arch) or arch.layers} to {in_words(grown) or grown.layers}); name another operator"
            )
        latest[i] = at
    place, at = [], -1
    for i in range(old):
        fits = [j for j in range(at + 1, latest[i] + 1) if grown.kinds[j] == arch.kinds[i]]
        ideal = i * new // old
        at = min(fits, key=lambda j: abs(j - ideal))
        place.append(at)
    return np.array(place, dtype=np.int64)


@operator("layers", "stack")
def stack(
    arch: Architecture, sizes: Mapping[str, int], grown: Architecture, init: str = "copy", noise: float = 0.0
) -> Step:
    """New layer i is old layer i mod L: the whole stack on top of itself, the last copy cut off where it must be.
    Gong et al., 2019; Du et al., 2024, "Stacking your transformers" (G_stack)."""
    return _grow(arch, grown, "stack", lambda old, new: (np.arange(new) % old, np.arange(new) >= old), init, noise)


@operator("layers", "interleave")
def interleave(
    arch: Architecture, sizes: Mapping[str, int], grown: Architecture, init: str = "copy", noise: float = 0.0
) -> Step:
    """Every layer repeated next to itself, as evenly as the sizes allow (doubling: old layer i div 2).
    Chang et al., 2018; Pan et al., 2024 (LESA), Du et al., 2024 (G_direct)."""

    def rule(old: int, new: int) -> Made:
        source = np.arange(new) * old // new
        return source, ~_first(source)

    return _grow(arch, grown, "interleave", rule, init, noise)


@operator("layers", "middle")
def middle(
    arch: Architecture, sizes: Mapping[str, int], grown: Architecture, init: str = "copy", noise: float = 0.0
) -> Step:
    """The middle block, as long as there are new layers, once more after itself. After Saunshi et al., 2024, "On the
    inductive bias of stacking towards improving reasoning" (MIDAS), where blocks are counted from the first layer.
    Raises GrowthError for more than 2 L layers."""

    def rule(old: int, new: int) -> Made:
        if new > 2 * old:
            raise GrowthError(
                f"layers: {old} to {new}: the middle block cannot be longer than the {old} layers there are; "
                "use stack or interleave, or grow in several stages"
            )
        start = (2 * old - new) // 2
        source = np.concatenate((np.arange(start + new - old), np.arange(start, old)))
        return source, ~_first(source)

    return _grow(arch, grown, "middle", rule, init, noise)


@operator("layers", "average")
def average(
    arch: Architecture, sizes: Mapping[str, int], grown: Architecture, init: str = "copy", noise: float = 0.0
) -> Step:
    """New layers spread evenly, each the mean of the old layers on both sides (at the end, a copy of the last).
    `init` is of that mean.
    Dong et al., 2020, "Towards adaptive residual network training"; Yano et al., 2025 (STEP)."""

    def rule(old: int, new: int) -> Made:
        born = ~np.isin(np.arange(new), np.arange(old) * new // old)
        before = np.cumsum(~born) - 1
        after = np.where(born & (before + 1 < old), before + 1, -1)
        return np.stack((before, after), axis=1), born, np.where(after >= 0, 0.5, 1.0)[:, None]

    return _grow(arch, grown, "average", rule, init, noise)


@operator("layers", "insert")
def insert(
    arch: Architecture,
    sizes: Mapping[str, int],
    grown: Architecture,
    at: Sequence[int | Mapping[str, Any]],
    init: str = "zero",
    noise: float = 0.0,
) -> Step:
    """Single layers at chosen places: `at` holds, in order, positions or mappings {index, source, init}.

    `index` is the position of the new layer in the resulting list, as in Python's list.insert; every patch applies to
    the list so far. `source` is an old layer or "clone" (the default): what the layer before it is made of, at 0 the
    first old one. Raises GrowthError for an index outside the list and for another number of patches than new layers.
    """
    if not isinstance(at, list | tuple):
        raise GrowthError(f"layers: at is {at!r}: give a list of positions, or of mappings of index, source and init")
    layers: list[tuple[int, str | None]] = [(i, None) for i in range(arch.layers)]  # (source, init of a new layer)
    for n, patch in enumerate(at):
        given = dict(patch) if isinstance(patch, Mapping) else {"index": patch}
        if unknown := sorted(map(str, set(given) - {"index", "source", "init"})):
            raise GrowthError(f"layers: patch {n} of insert has no key {', '.join(unknown)}: index, source, init")
        index, source, how = given.get("index"), given.get("source", "clone"), given.get("init", init)
        if not isinstance(index, int) or not 0 <= index <= len(layers):
            raise GrowthError(
                f"layers: patch {n} of insert has index {index}, but there are {len(layers)} layers by then: choose "
                f"0 to {len(layers)}"
            )
        if source == "clone":
            source = layers[index - 1][0] if index else 0 if arch.layers else -1
        if how == "random":
            source = -1
        elif not isinstance(source, int) or not 0 <= source < arch.layers:
            raise GrowthError(
                f"layers: patch {n} of insert has source {source}, but the old layers are 0 to {arch.layers - 1}; "
                'choose one of them, "clone", or init random'
            )
        layers.insert(index, (int(source), str(how)))
    if len(layers) != sizes["layers"]:
        raise GrowthError(
            f"layers: {arch.layers} to {sizes['layers']} needs {sizes['layers'] - arch.layers} patches, not {len(at)}"
        )
    born = np.array([how is not None for _, how in layers], dtype=bool)
    return _step(arch, grown, ([s for s, _ in layers], born, 1.0), [how or "copy" for _, how in layers], noise)


@operator("layers", "untie")
def untie(arch: Architecture, sizes: Mapping[str, int], grown: Architecture) -> Step:
    """Blocks that share a layer get copies of their own, or share in smaller groups: exact. After Yang et al., 2021,
    "Speeding up deep model training by sharing weights and then unsharing". Raises GrowthError where blocks of two
    different layers would come to share one, or their number changes."""
    made_of: dict[int, int] = {}
    for new, old in zip(grown.calls, arch.calls, strict=False):
        made_of.setdefault(new, old)
    if grown.depth != arch.depth or any(made_of[n] != o for n, o in zip(grown.calls, arch.calls, strict=True)):
        raise GrowthError(
            f"layers: {arch.depth} blocks on {arch.layers} layers cannot be untied to {grown.depth} on {grown.layers}: "
            "untie keeps the blocks, and those that share a layer shared one before; use stack or another operator for "
            "more blocks"
        )
    source = np.array([made_of[layer] for layer in range(grown.layers)], dtype=np.int64)
    m = LayerMap.make(arch.layers, source, born=~_first(source))
    return Step(arch, grown, (), True, m, approximate=("layers: the gradients of untied copies sum to the old one",))


@operator("layers", "drop", shrinks=True)
def drop(arch: Architecture, sizes: Mapping[str, int], grown: Architecture, keep: Sequence[int] | None = None) -> Step:
    """Fewer layers: those of `keep`, by default spread evenly over those of a kind ("every other": Fan et al., 2020,
    "Reducing transformer depth on demand with structured dropout" (LayerDrop), section 4.2). Does not preserve."""
    old, new = arch.layers, sizes["layers"]
    if keep is not None and not (isinstance(keep, list | tuple) and all(isinstance(i, int) for i in keep)):
        raise GrowthError(f"layers: keep is {keep!r}: give a list of old layers")
    kept = sorted(keep or ())
    if keep is None:
        spread = _like_to_like(arch, grown, lambda old, new: (np.arange(new) * old // max(new, 1), [False] * new))[0]
        kept = spread[:, 0].tolist()
    if not kept or len(kept) != new or len(set(kept)) != new or not all(0 <= i < old for i in kept):
        raise GrowthError(
            f"layers: {old} to {new} keeps {new} different layers, at least one, out of 0 to {old - 1}, not {kept}"
        )
    return _step(arch, grown, (kept, [False] * new, 1.0), ["copy"] * new)
