"""More attention heads, more key-value groups, wider heads."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.operators.width import ahead, appended, balanced_map, births_of, factor_of, noise_of, shares
from growth.step import Step


def _counts(arch: Architecture, sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Heads and groups, old and new; every head is its own group in a family without grouped queries."""
    heads, new_heads = arch.sizes["heads"], sizes["heads"]
    if "kv_heads" not in arch.sizes:
        return heads, heads, new_heads, new_heads
    arch.table.check({**arch.sizes, **sizes})
    return heads, arch.sizes["kv_heads"], new_heads, sizes["kv_heads"]


def _step(arch: Architecture, sizes: Mapping[str, int], maps: list[AxisMap], approximate: tuple[str, ...]) -> Step:
    """Only maps of axes that the family has."""
    return Step(
        arch,
        arch.replace(sizes),
        (),
        True,
        axes={m.axis: m for m in maps if m.axis in arch.sizes},
        approximate=approximate,
    )


@operator("heads", "zero")
def zero_heads(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New heads with random queries, keys and values whose output columns (o_proj) are zero: exact.

    Under grouped-query attention every old query head stays with its key-value head: whole new groups are appended,
    new queries join the end of their group, and where a group is to serve fewer queries its key-value head is copied
    to each part (exact; the moments of copies are approximate: their gradients only sum to the old one).
    Gesmundo and Maile, 2023, section 3.3. Raises GrowthError where the queries of a group cannot be split evenly.
    """
    heads, groups, new_heads, new_groups = _counts(arch, sizes)
    per, new_per = heads // groups, new_heads // new_groups
    parts = 1 if new_per >= per else per // new_per
    if per > new_per * parts or groups * parts > new_groups:
        raise GrowthError(
            f"heads {heads} to {new_heads} with kv_heads {groups} to {new_groups}: groups of {per} queries cannot "
            f"become groups of {new_per}; keep heads / kv_heads at {per}, raise it, or divide it by a whole number "
            f"while kv_heads grows by at least that number"
        )
    old_per = per // parts  # So many queries of each part have a source.
    group, within = np.divmod(np.arange(new_heads), new_per)
    has_source = (group < groups * parts) & (within < old_per)
    query = np.where(has_source, group * old_per + within, -1)
    kv = np.arange(new_groups)
    kv_source = np.where(kv < groups * parts, kv // parts, -1)
    maps = [
        AxisMap.make("heads", heads, query, zero=("read",)),
        AxisMap.make("kv_heads", groups, kv_source, gradient={"write": 1.0 / parts}),
    ]
    split = ("kv_heads: the gradients of copies of a key-value head only sum to the old one",) if parts > 1 else ()
    return _step(arch, sizes, maps, split)


def _copied(
    arch: Architecture,
    sizes: Mapping[str, int],
    group_source: np.ndarray,
    snr_db: float | None,
    split: float | None = None,
    born: bool = False,
) -> Step:
    """Groups copied along a map, and the queries of a group as often as there is room; outputs share."""
    heads, groups, new_heads, new_groups = _counts(arch, sizes)
    per, new_per = heads // groups, new_heads // new_groups
    group, within = np.divmod(np.arange(new_heads), new_per)
    query = group_source[group] * per + within % per
    noise, share = noise_of("heads", snr_db), shares("heads", query, split)
    # What each copy of a group serves, as a share of what the queries of the group did.
    served = share.reshape(new_groups, new_per).sum(axis=1) / per
    maps = [
        AxisMap.make("heads", heads, query, {"read": share}, born=births_of("heads", query, born), noise=noise),
        AxisMap.make(
            "kv_heads",
            groups,
            group_source,
            gradient={"write": served},
            born=births_of("heads", group_source, born),
        ),
    ]
    return _step(arch, sizes, maps, ("heads: noise changes the gradients of copied heads",) if noise else ())


@operator("heads", "replicate")
def replicate_heads(
    arch: Architecture,
    sizes: Mapping[str, int],
    snr_db: float | None = 10.0,
    split: float | None = None,
    born: bool = False,
) -> Step:
    """Every head k times, its output columns divided by k (or split: the first copy's share), with noise in the null
    space (null: none); key-value heads stay or are copied as well; with `born` later copies count as new. Samragh et
    al., 2024 (HyperCloning)."""
    heads, groups, new_heads, new_groups = _counts(arch, sizes)
    k = factor_of("heads", heads, new_heads, "zero or net2net")
    if k % factor_of("kv_heads", groups, new_groups, "zero or net2net"):
        raise GrowthError(
            f"kv_heads: {groups} to {new_groups} with heads {heads} to {new_heads}: replicate copies every group a "
            f"number of times that divides {k}; zero raises kv_heads for the same queries"
        )
    return _copied(arch, sizes, np.arange(new_groups) % groups, snr_db, split, born)


@operator("heads", "net2net")
def net2net_heads(
    arch: Architecture,
    sizes: Mapping[str, int],
    seed: int,
    mapping: str = "round_robin",
    snr_db: float | None = 10.0,
) -> Step:
    """Whole groups (heads, where each is its own) copied along an index map, their output columns divided by the number
    of copies: exact. Chen et al., 2016; Chen et al., 2022, "bert2BERT", section 3.2."""
    heads, groups, new_heads, new_groups = _counts(arch, sizes)
    if heads * new_groups != new_heads * groups:
        raise GrowthError(
            f"heads {heads} to {new_heads} with kv_heads {groups} to {new_groups}: net2net copies whole groups of "
            f"{heads // groups} queries; keep heads / kv_heads, or use zero or replicate"
        )
    return _copied(arch, sizes, balanced_map("kv_heads", groups, new_groups, mapping, seed), snr_db)


@operator("heads", "aki")
def aki_heads(arch: Architecture, sizes: Mapping[str, int], seed: int, mapping: str = "round_robin") -> Step:
    """As net2net, but new heads are those of the next layer: breaks the symmetry, does not preserve. Chen et al., 2022,
    "bert2BERT", section 3.3 (AKI)."""
    step = net2net_heads(arch, sizes, seed, mapping, None)
    return ahead(step, {axis: arch.sizes[axis] for axis in step.axes}, "heads")


@operator("head_dim", "rotary")
def rotary_head_dim(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """Wider heads under rotary embeddings, exact for a whole factor r: pair i turns as pair r i of the wider head, so
    it moves there. New query slots are zero (keys free), new output columns zero; queries times sqrt(r) make up for
    the softmax scale, which stays head_dim ** -0.5. Padding the tail instead would turn old pairs at other speeds.

    Where queries and keys are normed, new key slots are copies of old ones, which keep the mean square of a key."""
    old, new = arch.sizes["head_dim"], sizes["head_dim"]
    if "rope_theta" not in arch.scalars:
        raise GrowthError(f"head_dim: {old} to {new}: {arch.family} has no rotary embedding; use the operator zero")
    if new % old:
        raise GrowthError(
            f"head_dim: {old} to {new}: rotary embeddings allow whole factors only, because the frequencies of the old "
            f"pairs must be frequencies of the new head; choose {new // old * old} or {(new // old + 1) * old}, or the "
            "operator rotary_table, whose model carries its own frequencies, or add heads"
        )
    if arch.rope_frequencies:
        raise GrowthError(
            f"head_dim: {old} to {new}: this model carries a table of rotary frequencies; use the operator rotary_table"
        )
    return _wider(arch, np.arange(new // 2) * old // new, np.arange(new // 2) % (new // old) > 0)


@operator("head_dim", "rotary_table")
def table_head_dim(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """Wider heads under rotary embeddings, exact for any factor: from here on the model carries a table of
    frequencies. Old pairs keep theirs; those of new pairs are spread evenly, in the logarithm, between 1 and
    1 / rope_theta. Slots, outputs and queries as in `rotary`."""
    old, new = arch.sizes["head_dim"], sizes["head_dim"]
    if "rope_theta" not in arch.scalars:
        raise GrowthError(f"head_dim: {old} to {new}: {arch.family} has no rotary embedding; use the operator zero")
    added = (new - old) // 2
    spread = arch.scalars["rope_theta"] ** (-(np.arange(added) + 0.5) / added)
    pair = np.arange(new // 2)
    return _wider(arch, pair % (old // 2), pair >= old // 2, (*arch.frequencies().tolist(), *spread.tolist()))


@operator("head_dim", "zero")
def zero_head_dim(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """Wider heads where positions are not rotary: zero query slots and output columns at the tail, queries rescaled for
    the softmax scale. Gesmundo and Maile, 2023, section 3.4."""
    old, new = arch.sizes["head_dim"], sizes["head_dim"]
    if "rope_theta" in arch.scalars:
        raise GrowthError(
            f"head_dim: {old} to {new}: padding the tail is not exact under rotary embeddings; use the operator rotary "
            "or rotary_table"
        )
    return _step_wider(arch, _free_keys(old, appended(old, new)))


def _wider(arch: Architecture, pair: np.ndarray, added: np.ndarray, rope_frequencies: tuple[float, ...] = ()) -> Step:
    """The step to heads whose pairs are copies of these old ones, of which some are only added."""
    old, half = arch.sizes["head_dim"], arch.sizes["head_dim"] // 2
    source, new = np.concatenate((pair, pair + half)), np.concatenate((added, added))
    if not arch.table.head_norms:
        return _step_wider(arch, _free_keys(old, np.where(new, -1, source)), rope_frequencies)
    if len(source) % old:
        raise GrowthError(
            f"head_dim: {old} to {len(source)}: the norm of keys takes the mean over the channels of a head, which "
            "stays what it is only if each is copied equally often; choose "
            f"{(len(source) // old + 1) * old}, or add heads"
        )
    notes = ("head_dim: the norm of keys mixes the gradients of copies",)
    return _step_wider(arch, _copied_keys(old, source, new), rope_frequencies, notes)


def _free_keys(old: int, source: np.ndarray) -> AxisMap:
    """New slots of keys are as in a fresh model, those of queries and outputs zero."""
    scale = sqrt(len(source) / old)
    return AxisMap.make("head_dim", old, source, {"query": scale}, zero=("query", "read"))


def _copied_keys(old: int, source: np.ndarray, new: np.ndarray) -> AxisMap:
    """New slots of keys, and of values, are copies, those of queries and outputs zero. Queries are as long as before,
    after their norm too, and over so many more channels their mean square is what it was."""
    scale = sqrt(len(source) / old)
    kept = np.where(new, 0.0, 1.0)
    return AxisMap.make(
        "head_dim",
        old,
        source,
        {"query": kept * scale, "read": kept},
        gradient={"write": kept, "key": kept, "query": kept / scale, "read": 1.0, "gain": kept},
        born=new,
    )


def _step_wider(
    arch: Architecture, m: AxisMap, rope_frequencies: tuple[float, ...] = (), approximate: tuple[str, ...] = ()
) -> Step:
    scale = arch.scalars["softmax_scale"] * sqrt(m.old / m.new)
    grown = arch.replace({"head_dim": m.new}, {"softmax_scale": scale}, rope_frequencies)
    return Step(arch, grown, (), True, axes={"head_dim": m}, approximate=approximate)
