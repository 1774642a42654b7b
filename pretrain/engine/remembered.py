"""What lanes remember, to a checkpoint and from it: it was made by weights that are gone, so that only a copy will do.

A checkpoint has, of each block with an attention, `memory.N` (N from 1), fp32 [lanes, M, hidden], and `memory.filled`
[lanes], at how many places, the last ones, there is something. A lane is a row of the global batch, so that a rank
reads the boxes of its own, whatever layout wrote them. A growth reads through it what follows for the grown model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from growth import Box
from growth.stream import Stream
from pretrain.checkpoint import MEMORY, Reader
from pretrain.engine.engine import Engine
from pretrain.layout.work import attending

FILLED = "memory.filled"
MAPPED, FORGOTTEN = "mapped", "forgotten"
"""What became of a memory at a growth event: it is that which the grown model would have; or that cannot be said."""


def _name(layer: int) -> str:
    return f"memory.{layer}"


def shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """The tensors of what is remembered; none where nothing is."""
    memory = engine.memory
    if memory is None or not memory.holds:
        return {}
    lanes = len(memory.filled) * engine.layout.dp
    whole = (lanes, memory.length, engine.arch.sizes["hidden"])
    return {FILLED: (lanes,), **{_name(layer): whole for layer in attending(engine.arch)}}


def boxes(engine: Engine) -> Mapping[str, list[tuple[str, Box, Tensor]]]:
    """What this rank writes of it, by kind."""
    memory = engine.memory
    if memory is None or not memory.holds:
        return {}
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    pp_rank = parallel_state.get_pipeline_model_parallel_rank()
    places = memory.length // memory.parts
    first, place = engine.dp_rank * len(memory.filled), tp_rank * places if memory.parts > 1 else 0
    written: list[tuple[str, Box, Tensor]] = []
    if pp_rank == tp_rank == 0:
        filled = torch.from_numpy(memory.filled).float()
        written.append((FILLED, Box((first,), (first + len(filled),)), filled))
    for number, kept in enumerate(memory.kept if memory.parts > 1 or tp_rank == 0 else []):
        lane = first + number * memory.micro_batch
        for layer, states in kept.items():
            value = states.transpose(0, 1).to("cpu", torch.float32).contiguous()
            stop = (lane + len(value), place + places, value.shape[2])
            written.append((_name(layer), Box((lane, place, 0), stop), value))
    return {MEMORY: written}


def recall(engine: Engine, reader: Reader, stream: Stream | None, lanes: int) -> str:
    """Fill the memory of an engine, which has so many lanes over all ranks, from a checkpoint (not collective).

    stream: what entered the engine's blocks in terms of those of the checkpoint's model; None: that cannot be said, and
    all is forgotten. Lanes that the checkpoint does not have remember nothing. Returns what became of it; nothing where
    there is none.
    """
    memory = engine.memory
    if memory is None:
        return ""
    own, length = lanes // engine.layout.dp, memory.length
    first = engine.dp_rank * own
    memory.empty(own)
    if not reader.has(MEMORY):
        return ""
    if stream is None:
        return FORGOTTEN
    count = reader.manifest.tensors[FILLED].shape[0]
    old = range(first, min(first + own, count))
    if any(reader.read(MEMORY, FILLED, Box((0,), (count,)))):
        memory.hold(engine.arch.sizes["hidden"], engine.numerics.dtype)
    if not old:
        return MAPPED
    filled = reader.read(MEMORY, FILLED, Box((old.start,), (old.stop,)))
    memory.filled[: len(old)] = np.minimum(filled.numpy(), length)
    places = length // memory.parts
    place = parallel_state.get_tensor_model_parallel_rank() * places if memory.parts > 1 else 0
    for layer in memory.layers:
        name = _name(stream.blocks[layer - 1] + 1)
        _, stored, width = reader.manifest.tensors[name].shape
        start, stop = (max(0, each + stored - length) for each in (place, place + places))
        if start < stop:
            for lane in old:
                number, row = divmod(lane - first, memory.micro_batch)
                value = reader.read(MEMORY, name, Box((lane, start, 0), (lane + 1, stop, width)))[0]
                memory.kept[number][layer][places - (stop - start) :, row] = stream.widened(value).to(engine.device)
    return MAPPED
