"""What the blocks of a model remember of the text before a sample (Dai et al. 2019, "Transformer-XL", section 3.2).

Each attention sees [memory; segment]. A block's memory is what was its own input for the places before, without a
gradient; its keys and values are made by the weights of today. What a micro-batch remembers is set when its forward
pass begins. It lies among the states of Megatron-core's generators, for the reason in
pretrain.families.common.dropout.

Shapes: M places of memory, S sequence, B micro-batch. Under sequence parallelism a rank has its M / TP places, as it
has S / TP of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

_STATE = "cambium memory"


@dataclass
class Segment:
    """Of the pass over one micro-batch. Layers are counted from 1, over the whole model.

    length: M. remembers: whether there is anything to remember. memory: of each layer, [M, B, hidden], where there is.
    empty: bool [B, M], True at the places, the first ones, where a lane has nothing to remember yet; None: nowhere.
    parts: over how many tensor-parallel ranks a sequence is split. after: what each layer will remember.
    """

    length: int
    remembers: bool
    memory: Mapping[int, Tensor]
    empty: Tensor | None = None
    parts: int = 1
    after: dict[int, Tensor] = field(default_factory=dict)

    def before(self, layer: int) -> Tensor | None:
        """What a layer remembers, [M, B, hidden]; None: nothing."""
        return self.memory[layer] if self.remembers else None

    @torch.no_grad()
    def keep(self, layer: int, hidden: Tensor) -> None:
        """This is a layer's input, [S, B, hidden]: the layer will remember the last M places of [memory; input]."""
        hidden, own = hidden.detach(), self.length // self.parts
        if len(hidden) != own:
            hidden = self._last(layer, hidden)
        self.after[layer] = hidden

    def _last(self, layer: int, hidden: Tensor) -> Tensor:
        whole = self._gathered(hidden)
        missing = self.length - len(whole)
        if missing > 0:
            before = self.before(layer)
            older = whole.new_zeros(missing, *whole.shape[1:])
            whole = torch.cat((older if before is None else self._gathered(before)[-missing:], whole))
        last = whole[-self.length :]
        if self.parts > 1:
            last = last.chunk(self.parts)[parallel_state.get_tensor_model_parallel_rank()]
        return last.clone()

    def _gathered(self, part: Tensor) -> Tensor:
        return gather_from_sequence_parallel_region(part, False) if self.parts > 1 else part


def begin(segment: Segment | None) -> None:
    """The forward pass of a micro-batch begins; None: it neither remembers nor is remembered."""
    tracker = get_cuda_rng_tracker()
    tracker.set_states({**tracker.get_states(), _STATE: segment})


def current() -> Segment | None:
    """That of the pass that is made now."""
    segment: Segment | None = get_cuda_rng_tracker().get_states().get(_STATE)
    return segment


def places() -> int:
    """How many places before its own the samples of this pass have in their attention; 0: they remember nothing."""
    segment = current()
    return 0 if segment is None or not segment.remembers else segment.length


def joined(before: Tensor, own: Tensor) -> Tensor:
    """[memory; segment] of what was made of either, [m, ...] and [S, ...]: zero at the places of the memory, the first
    ones, of which nothing was made since no head sees so far. So its shape does not change with how far heads see, for
    kernels are compiled for each shape."""
    missing = places() - len(before)
    return torch.cat((before.new_zeros(missing, *before.shape[1:]), before, own) if missing else (before, own))


def begins(queries: int, inside: Tensor | None = None) -> Tensor | None:
    """Of every query the first key of [memory; segment] that it may see, int64 [B, queries], where some lanes have less
    to remember than others, or documents do not see each other; None: any. inside: of every query the first place of
    its document in the segment, int64 [B, queries]; what is remembered is of the document that is at its place 0."""
    segment = current()
    if segment is None or not segment.remembers:
        return inside
    first = None if segment.empty is None else segment.empty.sum(1, keepdim=True)
    if inside is None:
        return None if first is None else first.expand(-1, queries)
    return torch.where(inside > 0, segment.length + inside, 0 if first is None else first)


def unseen(queries: int, inside: Tensor | None = None) -> Tensor | None:
    """Which keys of [memory; segment] a query does not see, bool [B, 1, queries, M + queries], where it does not see
    all up to its own place: see `begins`; None: those behind its own place."""
    if (first := begins(queries, inside)) is None:
        return None
    keys = places() + queries
    ahead = torch.ones(queries, keys, dtype=torch.bool, device=first.device).triu(1 + keys - queries)
    return (ahead | (torch.arange(keys, device=first.device) < first[..., None]))[:, None]
