"""What a family of models is to the algebra: a table of logical tensors with the axes and the role of every dimension.

A dimension *writes* an axis (its index is an output that others take in), *reads* it, or is a *gain* or a *shift*
along it (the weight and the bias of a norm). `query`, `key` and `gate` are writers that a few operators treat apart,
and `stream` a reader of the residual stream as it is, without a norm before it; `last_gain` and `last_shift` belong to
the norm before a head that shares the embedding, hence has no factor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple

from growth.errors import GrowthError

Role = Literal["write", "query", "key", "gate", "read", "stream", "gain", "shift", "last_gain", "last_shift"]
Init = Literal["normal", "branch", "one", "zero"]

# A special role and the one whose factors it takes where an operator does not tell them apart.
GENERAL: dict[str, str] = {
    "query": "write",
    "key": "write",
    "gate": "write",
    "stream": "read",
    "last_gain": "gain",
    "last_shift": "shift",
    **{role: role for role in ("write", "read", "gain", "shift")},
}
RESIDUAL = "hidden"  # the axis of the residual stream
DISTANCES = "sinusoid"  # that of the embedding of a distance, of which matrices make keys that come from no token
LAYERS = "layers"
_MOST, MOST_LAYERS = 1 << 24, 1 << 16  # indices of an axis, and layers: more is a slip that would fill a memory


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor: the product of its axes in row-major order."""

    axes: tuple[str, ...]
    role: Role

    def size(self, sizes: Mapping[str, int]) -> int:
        return prod(sizes[a] for a in self.axes)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One row of a family's table. `init` says how a fresh element is made: "normal" (std `init_std`), "branch"
    (std `init_std / sqrt(branches)`, of all residual branches of the model), "one" or "zero". A name with `{layer}`
    stands for one tensor of each layer whose kind is among `kinds`."""

    name: str
    dims: tuple[Dim, ...]
    init: Init
    kinds: tuple[str, ...] = ("layer",)

    @property
    def layered(self) -> bool:
        return "{layer}" in self.name

    @property
    def branch(self) -> bool:
        """Whether this is a layer's way back into the residual stream: zero here makes the layer the identity."""
        writes = any(GENERAL[d.role] == "write" and RESIDUAL in d.axes for d in self.dims)
        return self.layered and writes and all(d.role != "stream" for d in self.dims)


class Stream(NamedTuple):
    """The residual stream at a place of a model: how many times `hidden` it is wide, and how many tokens of a sample
    one of its units stands for."""

    width: int = 1
    tokens: int = 1


def _no_rule(sizes: Mapping[str, int]) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """A family of architectures: its table of tensors (in model order), axes and logical scalars.

    `kinds` are the kinds of layers that it has, the usual one first: which rows of the table a layer is made of.
    `streams` are what layers of a kind take and give, where that is not a stream of one unit a token, `hidden` wide.
    `rule` raises GrowthError for sizes that do not fit together; `norm` is the normalisation of the residual stream;
    `pads` says whether new hidden channels can be added without changing the function; `fixed` are the sizes of the
    axes that are the same in every model.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    axes: tuple[str, ...]
    scalars: Mapping[str, Callable[[Mapping[str, int]], float]] = field(hash=False)
    norm: Literal["rms", "layer"] = "rms"
    pads: bool = True
    kinds: tuple[str, ...] = ("layer",)
    fixed: Mapping[str, int] = field(default_factory=dict, hash=False)
    streams: Mapping[str, tuple[Stream, Stream]] = field(default_factory=dict, hash=False)
    rule: Callable[[Mapping[str, int]], None] = _no_rule

    def rows(self, kind: str) -> tuple[TensorSpec, ...]:
        """The rows of which a layer of this kind is made."""
        return tuple(spec for spec in self.tensors if spec.layered and kind in spec.kinds)

    def through(self, kind: str) -> tuple[Stream, Stream]:
        """The stream that a layer of this kind takes, and the one that it gives."""
        return self.streams.get(kind, (Stream(), Stream()))

    def tokens(self, kind: str) -> int:
        """How many tokens of a sample stand for one application of the matrices of a layer of this kind."""
        return max(stream.tokens for stream in self.through(kind))

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return any(dim.role == "gate" for row in self.tensors for dim in row.dims)

    @property
    def rotary(self) -> bool:
        """Whether positions are rotations of queries and keys."""
        return "rope_theta" in self.scalars

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normed over the channels of each head."""
        return any(dim.axes == ("head_dim",) and dim.role == "gain" for row in self.tensors for dim in row.dims)

    @property
    def tied(self) -> bool:
        """Whether the matrix of the head is the embedding."""
        heads = (row.dims for row in self.tensors if len(row.dims) == 2 and row.dims[0].axes == ("vocab",))
        return not any(out.role == "write" and into.role == "read" for out, into in heads)

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise GrowthError unless `sizes` (axis -> size, and "layers") describe a model of this family."""
        wanted = {*self.axes, LAYERS}
        if missing := sorted(wanted - set(sizes)):
            raise GrowthError(f"{self.name}: no size for {', '.join(missing)}")
        if unknown := sorted(set(sizes) - wanted):
            raise GrowthError(f"{self.name} has no axis {', '.join(unknown)}: its axes are {', '.join(sorted(wanted))}")
        for axis, size in sizes.items():
            least, most = (0, MOST_LAYERS) if axis == LAYERS else (1, _MOST)
            if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
                raise GrowthError(f"{self.name}: {axis} = {size!r} must be an integer from {least} to {most:,}")
        self.rule(sizes)

    def default_scalars(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The logical scalars of a model without a parent, e.g. softmax_scale = head_dim ** -0.5."""
        return {name: default(sizes) for name, default in self.scalars.items()}


_families: dict[str, Family] = {}


def register(table: Family) -> None:
    """Makes a family known by its name."""
    _families[table.name] = table


def names() -> list[str]:
    """Of all families that are known."""
    return sorted(_families)


def family(name: str) -> Family:
    """The family of this name; raises GrowthError for an unknown one."""
    if name not in _families:
        raise GrowthError(f"there is no family {name!r}: choose one of {', '.join(names())}")
    return _families[name]
