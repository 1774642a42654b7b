"""An architecture: a family with its sizes, logical scalars and blocks, and the logical tensors that follow from them.

A *layer* is a set of weights, of one of the family's kinds. A *block* is a step of the forward pass: it calls one
layer. Usually every layer is called once, in order; layers that several blocks call are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from growth import rotary
from growth.adapters import RANK, Adapters, names
from growth.errors import GrowthError
from growth.family import LAYERS, MOST_LAYERS, Family, Stream, TensorSpec, family
from growth.span import Span, with_spans


@dataclass(frozen=True, slots=True)
class LogicalTensor:
    """One full-size, unsharded tensor of a model. `layer` is None outside the layers."""

    name: str
    spec: TensorSpec
    layer: int | None
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Block(NamedTuple):
    """One step of the forward pass: the kind and the number of the layer that it calls."""

    kind: str
    layer: int


@dataclass(frozen=True)
class Architecture:
    """Family, sizes (axis -> size, and "layers") and logical scalars (derived numbers that growth changes, such as
    the epsilon of the norms). Scalars that are not given take the family's defaults. `rope_frequencies` are those of
    the head_dim / 2 rotary pairs, in radians a position, where they do not follow from scalars (empty: they do).

    `kinds` is the kind of each layer (empty: all of the family's usual one). `calls` is, for each block in order, the
    number of the layer that it calls (empty: each layer once). Layers are numbered in the order of their first calls:
    calls (0, 0, 1, 1) are four blocks, of which two at a time share their weights.

    With `adapters` the sizes have the axis `rank` too. With a `span` the table has the spans of heads too.

    Raises GrowthError for an unknown family, axis, scalar or kind, for sizes, kinds and calls that do not fit together,
    for blocks that do not take what those before them give, for scalars that are not positive numbers and for adapters
    that the model cannot have.
    """

    family: str
    sizes: Mapping[str, int]
    scalars: Mapping[str, float] = field(default_factory=dict)
    rope_frequencies: tuple[float, ...] = ()
    kinds: tuple[str, ...] = ()
    calls: tuple[int, ...] = ()
    adapters: Adapters | None = None
    span: Span | None = None

    def __post_init__(self) -> None:
        table = family(self.family)
        if self.span:
            self.span.check(table)
        table.check({axis: size for axis, size in self.sizes.items() if axis != RANK})
        if unknown := sorted(set(self.scalars) - set(table.scalars)):
            raise GrowthError(
                f"{self.family} has no scalar {', '.join(unknown)}: its scalars are {', '.join(sorted(table.scalars))}"
            )
        order = (LAYERS, *table.axes)
        object.__setattr__(self, "sizes", {axis: int(self.sizes[axis]) for axis in order})
        scalars = {**table.default_scalars(self.sizes), **{k: float(v) for k, v in self.scalars.items()}}
        if wrong := [f"{name} = {value}" for name, value in scalars.items() if not 0 < value < inf]:
            raise GrowthError(f"{self.family}: {', '.join(wrong)} must be a number above 0 that is not infinite")
        object.__setattr__(self, "scalars", scalars)
        object.__setattr__(self, "rope_frequencies", tuple(map(float, self.rope_frequencies)))
        if self.rope_frequencies:
            self._check_frequencies()
        object.__setattr__(self, "kinds", tuple(self.kinds) or self.layers * table.kinds[:1])
        object.__setattr__(self, "calls", tuple(self.calls) or tuple(range(self.layers)))
        self._check_blocks()
        if table.streams:
            self._check_streams()
        if self.adapters:
            self.adapters.check(table, dict(self.sizes))
            object.__setattr__(self, "sizes", {**self.sizes, RANK: self.adapters.rank})

    def _check_blocks(self) -> None:
        if unknown := sorted({str(kind) for kind in self.kinds} - set(self.table.kinds)):
            known = ", ".join(self.table.kinds)
            raise GrowthError(f"{self.family} has no kind of layer {', '.join(unknown)}: its kinds are {known}")
        if len(self.kinds) != self.layers:
            raise GrowthError(f"{self.family}: there are {self.layers} layers, and {len(self.kinds)} kinds of them")
        if not all(type(layer) is int for layer in self.calls) or len(self.calls) > MOST_LAYERS:
            raise GrowthError(f"{self.family}: calls must be at most {MOST_LAYERS:,} numbers of layers")
        if list(dict.fromkeys(self.calls)) != list(range(self.layers)):
            raise GrowthError(
                f"{self.family}: the blocks must call each of the {self.layers} layers, numbered in the order of their "
                f"first calls, and they call {_shortened(self.calls)}"
            )

    def _check_streams(self) -> None:
        stream = Stream()
        for number, (kind, _) in enumerate(self.blocks):
            takes, gives = self.table.through(kind)
            if takes != stream:
                raise GrowthError(
                    f"{self.family}: block {number} is of kind {kind} and takes a stream {takes.width} x hidden wide, "
                    f"of one unit for {takes.tokens} token(s); before it there is one {stream.width} x hidden wide, of "
                    f"one for {stream.tokens}"
                )
            stream = gives
        if stream != Stream():
            raise GrowthError(
                f"{self.family}: the last block gives one unit for {stream.tokens} tokens, and the head needs one for "
                "each: end with what makes the stream as long as the text again"
            )
        if (places := self.sizes.get("positions", 0)) % self.unit:
            raise GrowthError(
                f"{self.family}: positions = {places} must be a multiple of {self.unit}, its longest unit"
            )

    def _check_frequencies(self) -> None:
        if "rope_theta" not in self.scalars:
            raise GrowthError(f"{self.family} has no rotary embedding, hence no frequencies")
        right = all(0 < frequency < inf for frequency in self.rope_frequencies)
        if 2 * len(self.rope_frequencies) != self.sizes["head_dim"] or not right:
            raise GrowthError(
                f"{self.family}: head_dim = {self.sizes['head_dim']} needs positive rotary frequencies for half as "
                f"many pairs, not {self.rope_frequencies}"
            )

    def __hash__(self) -> int:
        sizes, scalars = tuple(self.sizes.items()), tuple(self.scalars.items())
        return hash(
            (self.family, sizes, scalars, self.rope_frequencies, self.kinds, self.calls, self.adapters, self.span)
        )

    @property
    def table(self) -> Family:
        table = family(self.family)
        return with_spans(table) if self.span else table

    @property
    def layers(self) -> int:
        """The number of layers: sets of weights, each stored once."""
        return self.sizes[LAYERS]

    @property
    def depth(self) -> int:
        """The number of blocks, which is that of the layers where none is shared."""
        return len(self.calls)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in order."""
        return tuple(Block(self.kinds[layer], layer) for layer in self.calls)

    @property
    def mixed(self) -> bool:
        """Whether a layer is not of the family's usual kind."""
        return not set(self.kinds) <= {self.table.kinds[0]}

    @property
    def shared(self) -> bool:
        """Whether a layer is called more than once."""
        return self.depth != self.layers

    def stream(self, block: int) -> Stream:
        """The residual stream in front of a block of this number; behind the last one where there is none."""
        return self.table.through(self.blocks[block].kind)[0] if block < self.depth else Stream()

    @cached_property
    def unit(self) -> int:
        """How many tokens the longest unit of the stream stands for: samples are multiples of it."""
        return max((self.table.tokens(kind) for kind in set(self.kinds)), default=1)

    @cached_property
    def branches(self) -> int:
        """Residual branches over all blocks: two in a block of attention and MLP, each ending in a matrix whose init
        is "branch"."""
        ends = {kind: sum(row.init == "branch" for row in self.table.rows(kind)) for kind in set(self.kinds)}
        return sum(ends[block.kind] for block in self.blocks)

    def next_like(self, layer: int) -> int:
        """The number of the next layer of the same kind; the layer itself where there is none."""
        return next((i for i in range(layer + 1, self.layers) if self.kinds[i] == self.kinds[layer]), layer)

    @cached_property
    def rows(self) -> tuple[TensorSpec, ...]:
        """The rows of the family's table, and those of adapters: of what the model's tensors are."""
        if self.adapters is None:
            return self.table.tensors
        return tuple(each for row in self.table.tensors for each in self.adapters.rows(row))

    def rows_of(self, kind: str) -> tuple[TensorSpec, ...]:
        """Those of which a layer of this kind is made."""
        return tuple(row for row in self.rows if row.layered and kind in row.kinds)

    def adapter(self, name: str) -> tuple[str, str] | None:
        """The names of A and B beside a tensor; None where it has none."""
        if self.adapters is None or not self.adapters.adapts(self.tensor(name).spec):
            return None
        return names(name)

    @cached_property
    def _tensors(self) -> dict[str, LogicalTensor]:
        return {t.name: t for t in self._walk()}

    def _walk(self) -> Iterator[LogicalTensor]:
        specs = self.rows
        layered = [s for s in specs if s.layered]
        first, rows = specs.index(layered[0]), {kind: self.rows_of(kind) for kind in set(self.kinds)}
        for spec in specs[:first]:
            yield self._tensor(spec, None)
        for layer in range(self.layers):
            for spec in rows[self.kinds[layer]]:
                yield self._tensor(spec, layer)
        for spec in specs[first + len(layered) :]:
            yield self._tensor(spec, None)

    def _tensor(self, spec: TensorSpec, layer: int | None) -> LogicalTensor:
        name = spec.name if layer is None else spec.name.format(layer=layer)
        return LogicalTensor(name, spec, layer, tuple(d.size(self.sizes) for d in spec.dims))

    def tensors(self) -> dict[str, LogicalTensor]:
        """Every logical tensor by name, in model order."""
        return dict(self._tensors)

    def tensor(self, name: str) -> LogicalTensor:
        """One logical tensor; raises GrowthError for a name that this architecture does not have."""
        if name not in self._tensors:
            raise GrowthError(f"{self.family} with {self.layers} layers has no tensor {name!r}")
        return self._tensors[name]

    def parameters(self) -> int:
        """The number of parameters."""
        return sum(t.numel for t in self._tensors.values())

    def frequencies(self) -> NDArray[np.float64]:
        """[head_dim / 2]: radians a position by which each rotary pair turns."""
        if self.rope_frequencies:
            return np.array(self.rope_frequencies)
        return rotary.frequencies(self.sizes["head_dim"], self.scalars)

    def replace(
        self,
        sizes: Mapping[str, int] | None = None,
        scalars: Mapping[str, float] | None = None,
        rope_frequencies: tuple[float, ...] | None = None,
        kinds: tuple[str, ...] | None = None,
        calls: tuple[int, ...] | None = None,
    ) -> Architecture:
        """The same family with some sizes and scalars changed; the other scalars stay as they are, and a table of
        rotary frequencies while head_dim does. Other layers than before are of the kind that all of them were, and are
        called once each; raises GrowthError where kinds and calls do not follow that way and are not given."""
        grown = {**self.sizes, **(sizes or {})}
        if rope_frequencies is None:
            rope_frequencies = self.rope_frequencies if grown["head_dim"] == self.sizes["head_dim"] else ()
        if grown[LAYERS] != self.layers:
            if kinds is None and len(set(self.kinds)) > 1:
                raise GrowthError(
                    f"{LAYERS}: they are of several kinds ({in_words(self)}): say of which the new ones are"
                )
            if calls is None and self.shared:
                raise GrowthError(
                    f"{LAYERS}: blocks share them ({in_words(self)}): say which block calls which new one"
                )
            kinds = self.kinds[:1] * grown[LAYERS] if kinds is None else kinds
            calls = calls or ()
        return Architecture(
            self.family,
            grown,
            {**self.scalars, **(scalars or {})},
            rope_frequencies,
            self.kinds if kinds is None else kinds,
            self.calls if calls is None else calls,
            self.adapters,
            self.span,
        )

    def with_adapters(self, adapters: Adapters | None) -> Architecture:
        """The same model with other adapters, or with none."""
        return replace(self, adapters=adapters)

    def to_json(self) -> dict[str, Any]:
        """Frequencies, kinds and calls only where they are not the usual ones; adapters, spans where there are any."""
        sizes = {axis: size for axis, size in self.sizes.items() if axis != RANK}
        data: dict[str, Any] = {"family": self.family, "sizes": sizes, "scalars": dict(self.scalars)}
        for name, unusual in (("rope_frequencies", True), ("kinds", self.mixed), ("calls", self.shared)):
            if unusual and getattr(self, name):
                data[name] = list(getattr(self, name))
        own = {"adapters": self.adapters, "span": self.span}
        return data | {name: value.to_json() for name, value in own.items() if value}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Architecture:
        more = {name: tuple(data[name]) for name in ("rope_frequencies", "kinds", "calls") if name in data}
        adapters = Adapters.from_json(data["adapters"]) if "adapters" in data else None
        span = Span.from_json(data["span"]) if "span" in data else None
        return Architecture(data["family"], data["sizes"], data["scalars"], **more, adapters=adapters, span=span)


def in_words(arch: Architecture) -> str:
    """Kinds and calls in a line, runs of equal ones together, such as "3 attention, 1 mlp; layers 0 x 3, 1"; empty
    where the blocks are the usual ones."""
    parts = []
    if arch.mixed:
        runs = [(kind, len(list(run))) for kind, run in groupby(block.kind for block in arch.blocks)]
        parts.append(", ".join(f"{n} {kind}" for kind, n in runs))
    if arch.shared:
        runs_of = [(layer, len(list(run))) for layer, run in groupby(arch.calls)]
        parts.append("layers " + ", ".join(f"{layer} x {n}" if n > 1 else str(layer) for layer, n in runs_of))
    return "; ".join(parts)


def _shortened(calls: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, calls[:20]))}{', ...' if len(calls) > 20 else ''}"
