"""Deeper: operators on the layers. Each chooses for every new layer the old one that it is made of, and an `init`:

copy    as it is
zero    a copy whose residual branches (o_proj, down_proj and their biases) are zero, hence the identity in a pre-norm
        model: exact
random  a fresh layer

and a `noise`: the standard deviation of the relative noise on the matrices of new layers that are made of old ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import LayerMap
from growth.operators.registry import operator
from growth.step import Step

INITS = ("copy", "zero", "random")
LOUDEST = 1e6  # noise, in standard deviations of what it is added to


def _first(source: np.ndarray) -> np.ndarray:
    """Whether a source is named for the first time: that layer is the old one, the others are new."""
    first = np.zeros(len(source), dtype=bool)
    first[np.unique(source, return_index=True)[1]] = True
    return first


def _step(
    arch: Architecture,
    source: ArrayLike,
    born: np.ndarray,
    inits: Sequence[str],
    *,
    noise: float = 0.0,
    coefficient: ArrayLike = 1.0,
) -> Step:
    """The step of a source, an init and a birth for each layer."""
    if unknown := sorted({str(i) for i in inits} - set(INITS)):
        raise GrowthError(f"layers: there is no init {', '.join(unknown)}: choose one of {', '.join(INITS)}")
    src = np.asarray(source, dtype=np.int64).reshape(len(born), -1)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= LOUDEST:
        raise GrowthError(f"layers: noise is {noise!r}: give a relative standard deviation from 0 to {LOUDEST:g}")
    random = born & np.array([i == "random" for i in inits], dtype=bool)
    zero = born & np.array([i == "zero" for i in inits], dtype=bool)
    m = LayerMap.make(
        arch.layers,
        np.where(random[:, None], -1, src),
        born=born | (src[:, 0] < 0),
        zero_branch=zero,
        coefficient=coefficient,
        noise=np.where(born, noise, 0.0),
    )
    kept = src[~born, 0].tolist()
    preserves = kept == list(range(arch.layers)) and bool(zero[born].all())
    return Step(arch, arch.replace({"layers": len(born)}), (), preserves, m)


def _needs_layers(arch: Architecture, name: str) -> None:
    if arch.layers == 0:
        raise GrowthError(f"layers: {name} needs an old layer to copy and there is none; use insert with init random")


@operator("layers", "identity")
def identity_layers(arch: Architecture, sizes: Mapping[str, int], init: str = "zero", noise: float = 0.0) -> Step:
    """New layers spread evenly between the old ones, each made of the layer before it: by default a copy with a zero
    branch. Wu et al., 2024, "LLaMA Pro", section 3.2."""
    old, new = arch.layers, sizes["layers"]
    place = np.arange(old) * new // max(old, 1)  # of each old layer among the new ones
    born = ~np.isin(np.arange(new), place)
    return _step(arch, np.cumsum(~born) - 1, born, [init] * new, noise=noise)


@operator("layers", "stack")
def stack(arch: Architecture, sizes: Mapping[str, int], init: str = "copy", noise: float = 0.0) -> Step:
    """New layer i is old layer i mod L: the whole stack on top of itself, the last copy cut off where it must be.
    Gong et al., 2019; Du et al., 2024, "Stacking your transformers" (G_stack)."""
    _needs_layers(arch, "stack")
    source = np.arange(sizes["layers"]) % arch.layers
    return _step(arch, source, np.arange(sizes["layers"]) >= arch.layers, [init] * len(source), noise=noise)


@operator("layers", "interleave")
def interleave(arch: Architecture, sizes: Mapping[str, int], init: str = "copy", noise: float = 0.0) -> Step:
    """Every layer repeated next to itself, as evenly as the sizes allow (doubling: old layer i div 2).
    Chang et al., 2018; Pan et al., 2024 (LESA), Du et al., 2024 (G_direct)."""
    _needs_layers(arch, "interleave")
    source = np.arange(sizes["layers"]) * arch.layers // sizes["layers"]
    return _step(arch, source, ~_first(source), [init] * len(source), noise=noise)


@operator("layers", "middle")
def middle(arch: Architecture, sizes: Mapping[str, int], init: str = "copy", noise: float = 0.0) -> Step:
    """The middle block, as long as there are new layers, once more after itself. Saunshi et al., 2024, "On the
    inductive bias of stacking towards improving reasoning" (MIDAS). Raises GrowthError for more than 2 L layers."""
    _needs_layers(arch, "middle")
    old, block = arch.layers, sizes["layers"] - arch.layers
    if block > old:
        raise GrowthError(
            f"layers: {old} to {sizes['layers']}: the middle block cannot be longer than the {old} layers there are; "
            "use stack or interleave, or grow in several stages"
        )
    start = (old - block) // 2
    source = np.concatenate((np.arange(start + block), np.arange(start, old)))
    return _step(arch, source, ~_first(source), [init] * len(source), noise=noise)


@operator("layers", "average")
def average(arch: Architecture, sizes: Mapping[str, int], init: str = "copy", noise: float = 0.0) -> Step:
    """New layers spread evenly, each the mean of the old layers on both sides (at the end, a copy of the last).
    `init` is of that mean.
    Dong et al., 2020, "Towards adaptive residual network training"; Yano et al., 2025 (STEP)."""
    _needs_layers(arch, "average")
    old, new = arch.layers, sizes["layers"]
    born = ~np.isin(np.arange(new), np.arange(old) * new // old)
    before = np.cumsum(~born) - 1
    after = np.where(born & (before + 1 < old), before + 1, -1)
    coefficient = np.where(after >= 0, 0.5, 1.0)[:, None].repeat(2, axis=1)
    return _step(arch, np.stack((before, after), axis=1), born, [init] * new, noise=noise, coefficient=coefficient)


@operator("layers", "insert")
def insert(
    arch: Architecture,
    sizes: Mapping[str, int],
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
    return _step(arch, [s for s, _ in layers], born, [how or "copy" for _, how in layers], noise=noise)


@operator("layers", "untie")
def untie(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """Layers that share weights get their own copies, k groups to a multiple of k: exact. The family must share
    (`llama2_shared`, whose scalar `repeats` is how many layers use one set). After Yang et al., 2021, "Speeding up deep
    model training by sharing weights and then unsharing". Raises GrowthError for a number that does not divide."""
    old, new = arch.layers, sizes["layers"]
    repeats = int(arch.scalars.get("repeats", 1))
    if new % max(old, 1) or repeats % (new // max(old, 1)):
        raise GrowthError(
            f"layers: {old} to {new} with {repeats} layers on each set of weights: untie makes a whole multiple of "
            f"{old} that divides {old * repeats}; use stack or another operator for more layers"
        )
    copies = new // old
    source = np.arange(new) // copies
    m = LayerMap.make(old, source, born=~_first(source))
    grown = arch.replace({"layers": new}, {"repeats": repeats // copies})
    return Step(arch, grown, (), True, m, approximate=("layers: the gradients of untied copies sum to the old one",))


@operator("layers", "drop", shrinks=True)
def drop(arch: Architecture, sizes: Mapping[str, int], keep: Sequence[int] | None = None) -> Step:
    """Fewer layers: those of `keep`, by default spread evenly ("every other": Fan et al., 2020, "Reducing transformer
    depth on demand with structured dropout" (LayerDrop), section 4.2). Does not preserve."""
    old, new = arch.layers, sizes["layers"]
    if keep is not None and not (isinstance(keep, list | tuple) and all(isinstance(i, int) for i in keep)):
        raise GrowthError(f"layers: keep is {keep!r}: give a list of old layers")
    kept = [i * old // new for i in range(new)] if keep is None else sorted(keep)
    if not kept or len(kept) != new or len(set(kept)) != new or not all(0 <= i < old for i in kept):
        raise GrowthError(
            f"layers: {old} to {new} keeps {new} different layers, at least one, out of 0 to {old - 1}, not {kept}"
        )
    return _step(arch, kept, np.zeros(new, dtype=bool), ["copy"] * new)
