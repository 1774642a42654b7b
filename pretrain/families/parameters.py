"""From Megatron-core's fused, sharded parameters to boxes of logical tensors."""

from __future__ import annotations

from dataclasses import replace

from growth.architecture import Architecture
from pretrain import families
from pretrain.layout.adapters import with_adapters
from pretrain.layout.cuts import Parameter, Place
from pretrain.layout.layout import Layout


def parameters(arch: Architecture, layout: Layout, pp_rank: int, tp_rank: int) -> list[Parameter]:
    """Every parameter of one rank, named and ordered as `torch.nn.ModuleList` of its Megatron chunks has them.

    A layer that several of its blocks call is there once. One that blocks of other pipeline ranks call too is a copy
    there, which the first of these ranks owns.
    """
    last, of_chunk = len(layout.pipeline) - 1, families.of(arch.family).layout
    listed, here = [], set[int]()
    elsewhere = {layer for rank in range(pp_rank) for layer in _layers(arch, layout, rank)} if arch.shared else set()
    for i, (chunk, numbers) in enumerate(layout.chunks(pp_rank)):
        blocks = []
        for local, number in enumerate(numbers):
            block = arch.blocks[number]
            if block.layer not in here:
                blocks.append((local, block))
            here.add(block.layer)
        place = Place(tp_rank, layout.tp, tuple(blocks), chunk == 0, chunk == last)
        for parameter in with_adapters(arch, of_chunk(arch, place), tp_rank):
            copy = bool(elsewhere) and layer_of(arch, parameter) in elsewhere
            listed.append(replace(parameter, name=f"{i}.{parameter.name}", owner=parameter.owner and not copy))
    return listed


def spanning(arch: Architecture, layout: Layout, tp_rank: int) -> list[Parameter]:
    """The parameters of the layers that blocks of several pipeline ranks call, in order, as their owner holds them:
    the gradients of all copies are to be summed."""
    listed: list[Parameter] = []
    held: list[set[int]] = [_layers(arch, layout, rank) for rank in range(layout.pp)] if arch.shared else []
    for rank, layers in enumerate(held):
        copied = layers.intersection(*[set().union(*held[rank + 1 :])]).difference(*held[:rank])
        if copied:
            listed += [p for p in parameters(arch, layout, rank, tp_rank) if layer_of(arch, p) in copied]
    return listed


def layer_of(arch: Architecture, parameter: Parameter) -> int | None:
    """The number of the layer that a parameter is of; None outside the layers."""
    return arch.tensor(parameter.pieces[0].tensor).layer if parameter.pieces else None


def _layers(arch: Architecture, layout: Layout, pp_rank: int) -> set[int]:
    """The layers that blocks of a pipeline rank call."""
    return {arch.calls[number] for _, numbers in layout.chunks(pp_rank) for number in numbers}
