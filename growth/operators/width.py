"""Wider: operators on the hidden size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt

import numpy as np

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.step import Step


def appended(old: int, new: int) -> np.ndarray:
    """The old indices, then new ones without a source."""
    return np.where(np.arange(new) < old, np.arange(new), -1)


def copies(source: np.ndarray) -> np.ndarray:
    """How many copies the source of each index has."""
    _, inverse, count = np.unique(source, return_inverse=True, return_counts=True)
    return np.asarray(count[inverse], dtype=np.float64)


def later_copies(source: np.ndarray) -> np.ndarray:
    """bool: which indices copy what an earlier one copies."""
    later = np.ones(len(source), dtype=bool)
    later[np.unique(source, return_index=True)[1]] = False
    return later


def births_of(axis: str, source: np.ndarray, born: bool) -> np.ndarray | None:
    """What `born` of a map is: later copies are new, where an operator's option says so."""
    if not isinstance(born, bool):
        raise GrowthError(f"{axis}: born is {born!r}: give true for later copies that count as new, or false")
    return later_copies(source) if born else None


def shares(axis: str, source: np.ndarray, split: float | None) -> np.ndarray:
    """What readers take from each copy of an index: the same, or `split` from the first and the rest from others."""
    count = copies(source)
    if split is None:
        return np.asarray(1.0 / count)
    if isinstance(split, bool) or not isinstance(split, int | float) or not 0.0 < split < 1.0:
        raise GrowthError(f"{axis}: split is {split!r}: give the share of the first copy, between 0 and 1")
    unequal = np.where(~later_copies(source), split, (1.0 - split) / np.maximum(count - 1.0, 1.0))
    return np.where(count > 1, unequal, 1.0)


def factor_of(axis: str, old: int, new: int, instead: str) -> int:
    """new / old; raises GrowthError unless it is a whole number."""
    if new % old:
        raise GrowthError(
            f"{axis}: {old} to {new} is not a whole multiple, which replicate needs: choose {new // old * old} or "
            f"{(new // old + 1) * old}, or the operator {instead}"
        )
    return new // old


def noise_of(axis: str, snr_db: float | None) -> float:
    """The relative standard deviation of noise at a signal-to-noise ratio in decibels; none without one."""
    if snr_db is None:
        return 0.0
    if isinstance(snr_db, bool) or not isinstance(snr_db, int | float) or not -120 <= snr_db <= 1000:
        raise GrowthError(f"{axis}: snr_db is {snr_db!r}: give decibels from -120 to 1000, or null for no noise")
    return float(10 ** (-snr_db / 20))


def balanced_map(axis: str, old: int, new: int, mapping: str, seed: int) -> np.ndarray:
    """Net2Net's index map: the old indices, then further ones, in turn ("round_robin") or drawn ("random")."""
    if mapping == "round_robin":
        return np.arange(new) % old
    if mapping == "random":
        drawn = np.random.Generator(np.random.Philox(key=seed % 2**128)).integers(0, old, new - old)
        return np.concatenate((np.arange(old), drawn))
    raise GrowthError(f"{axis}: there is no mapping {mapping!r}: choose round_robin or random")


def ahead(step: Step, old: Mapping[str, int], what: str) -> Step:
    """A step of copies in which what writes the new indices, those from old[axis] on, is made of the next layer."""
    axes = {axis: m.made_ahead(np.arange(len(m.source)) >= old[axis]) for axis, m in step.axes.items()}
    note = f"{', '.join(axes)}: moments of new {what} are of another layer"
    return replace(step, preserves=False, axes=axes, approximate=(note,))


@operator("hidden", "zero")
def zero_hidden(arch: Architecture, sizes: Mapping[str, int], keep_eps: bool = False) -> Step:
    """New residual channels that nothing writes yet and that readers read at random.

    The mean square of a padded vector is d/D of what it was. RMSNorm's gain takes sqrt(d/D) and its epsilon d/D: exact
    (the gain alone is not). With `keep_eps` the residual stream is scaled by sqrt(D/d) instead: every writer takes
    that, gains sqrt(d/D), and epsilon stays. A LayerNorm also subtracts the mean, so writers write the mean of their
    old rows into the new channels: exact but where a head puts a nonlinearity between (BERT's MLM head).
    After Chen et al., 2016 (Net2Net), and Gesmundo and Maile, 2023, section 3.6.
    """
    if not isinstance(keep_eps, bool):
        raise GrowthError(f"hidden: keep_eps is {keep_eps!r}: give true or false")
    d, new = arch.sizes["hidden"], sizes["hidden"]
    s = sqrt(d / new)
    source = appended(d, new)
    layer_norm = arch.table.norm == "layer"
    factors, gradient = {"gain": s}, {"shift": 1.0} if layer_norm else {}
    if keep_eps:
        # The embedding takes the scale of the stream too; before a tied head the last norm undoes it.
        factors |= {"write": 1 / s, "last_gain": s * s, "last_shift": s}
        gradient = {"write": s, "read": 1.0, "gain": 1 / s, "shift": 1.0, "last_gain": 1 / s**2, "last_shift": 1 / s}
        if arch.table.streams:  # what reads the stream without a norm undoes the scale itself
            factors, gradient = {**factors, "stream": s}, {**gradient, "stream": 1 / s}
    m = AxisMap.make("hidden", d, source, factors, gradient=gradient, zero=() if layer_norm else ("write",))
    if layer_norm:
        m = m.mixing({"write": np.full((1, d), 1.0 / d)}, np.where(source < 0, 0, -1))
    scalars = {} if keep_eps else {"norm_eps": arch.scalars["norm_eps"] * d / new}
    axes = {"hidden": m}
    if arch.table.head_norms and not keep_eps:  # of the same epsilon: so their inputs shrink with its root
        size = arch.sizes["head_dim"]
        axes["head_dim"] = AxisMap.make("head_dim", size, np.arange(size), {"query": s, "key": s})
    padded = ("hidden: gradients of old rows change with the mean that pads",) if layer_norm else ()
    grown = arch.replace({"hidden": new}, scalars)
    return Step(arch, grown, (), arch.table.pads, axes=axes, approximate=padded)


def _copied(
    arch: Architecture,
    new: int,
    source: np.ndarray,
    snr_db: float | None,
    exact: bool,
    split: float | None = None,
    born: bool = False,
) -> Step:
    """Channels copied along a map: writers and gains as they are, readers share."""
    share = shares("hidden", source, split)
    m = AxisMap.make(
        "hidden",
        arch.sizes["hidden"],
        source,
        {"read": share, "last_gain": share, "last_shift": share},
        born=births_of("hidden", source, born),
        noise=noise_of("hidden", snr_db),
    )
    notes: tuple[str, ...] = (
        ("hidden: noise changes the gradients of what writes copied channels",) if snr_db is not None else ()
    )
    if len(set(share)) > 1:
        notes += ("hidden: norms mix the gradients of copies with unequal shares",)
    return Step(arch, arch.replace({"hidden": new}), (), exact, axes={"hidden": m}, approximate=notes)


@operator("hidden", "replicate")
def replicate_hidden(
    arch: Architecture,
    sizes: Mapping[str, int],
    snr_db: float | None = 10.0,
    split: float | None = None,
    born: bool = False,
) -> Step:
    """The residual stream k times, x' = [x, x, ...], readers divided by k: exact for RMSNorm and LayerNorm.

    Copies would stay copies under training, so readers take relative noise in the null space (it sums to nothing over
    the copies) at a signal-to-noise ratio of `snr_db`; null for none. With `split` the first copy gives readers that
    share instead of 1/k; under Adam, which does not see the scale of gradients, that alone parts copies slowly.
    With `born` later copies count as new: their moments are reset, and they have a rate of their own ("SPARKLING",
    2026, 2602.02472), which parts them as well.
    Samragh et al., 2024, "Scaling smart: accelerating large language model pre-training with small model
    initialization" (HyperCloning).
    """
    old, new = arch.sizes["hidden"], sizes["hidden"]
    factor_of("hidden", old, new, "zero")
    return _copied(arch, new, np.arange(new) % old, snr_db, True, split, born)


@operator("hidden", "net2net")
def net2net_hidden(
    arch: Architecture,
    sizes: Mapping[str, int],
    seed: int,
    mapping: str = "round_robin",
    snr_db: float | None = 10.0,
) -> Step:
    """Channels copied along any index map, readers divided by the number of copies (Chen et al., 2016, "Net2Net";
    Chen et al., 2022, "bert2BERT" (FPI)). Exact only if every channel has as many copies as any other, else the norms
    see another mean."""
    old, new = arch.sizes["hidden"], sizes["hidden"]
    source = balanced_map("hidden", old, new, mapping, seed)
    return _copied(arch, new, source, snr_db, len(set(copies(source))) == 1)


@operator("hidden", "aki")
def aki_hidden(
    arch: Architecture,
    sizes: Mapping[str, int],
    seed: int,
    mapping: str = "round_robin",
    snr_db: float | None = None,
) -> Step:
    """As net2net, but what writes the new channels inside a layer comes from the next layer: breaks the symmetry, does
    not preserve. Chen et al., 2022, "bert2BERT", section 3.3 (AKI)."""
    old, new = arch.sizes["hidden"], sizes["hidden"]
    step = _copied(arch, new, balanced_map("hidden", old, new, mapping, seed), snr_db, False)
    return ahead(step, {"hidden": old}, "channels")
