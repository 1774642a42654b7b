"""From Megatron-core's fused, sharded parameters to boxes of logical tensors."""

from __future__ import annotations

from growth.architecture import Architecture
from pretrain import families
from pretrain.layout.cuts import Parameter, Place
from pretrain.layout.layout import Layout


def parameters(arch: Architecture, layout: Layout, pp_rank: int, tp_rank: int) -> list[Parameter]:
    """Every parameter of one rank, named and ordered as `torch.nn.ModuleList` of its Megatron chunks has them."""
    last, of_chunk = len(layout.pipeline) - 1, families.of(arch.family).layout
    return [
        parameter.prefixed(f"{i}.")
        for i, (chunk, layers) in enumerate(layout.chunks(pp_rank))
        for parameter in of_chunk(arch, Place(tp_rank, layout.tp, layers, chunk == 0, chunk == last))
    ]
