"""From Megatron-core's fused, sharded parameters to boxes of logical tensors."""

from __future__ import annotations

from collections.abc import Callable

from growth.architecture import Architecture
from pretrain.families.bert import layout as bert
from pretrain.families.gpt2 import layout as gpt2
from pretrain.families.llama2 import layout as llama2
from pretrain.layout.cuts import Parameter, Place
from pretrain.layout.layout import Layout

_CHUNK: dict[str, Callable[[Architecture, Place], list[Parameter]]] = {
    "llama2": llama2.parameters,
    "gpt2": gpt2.parameters,
    "bert": bert.parameters,
}


def parameters(arch: Architecture, layout: Layout, pp_rank: int, tp_rank: int) -> list[Parameter]:
    """Every parameter of one rank, named and ordered as `torch.nn.ModuleList` of its Megatron chunks has them."""
    last = len(layout.pipeline) - 1
    return [
        parameter.prefixed(f"{i}.")
        for i, (chunk, layers) in enumerate(layout.chunks(pp_rank))
        for parameter in _CHUNK[arch.family](arch, Place(tp_rank, layout.tp, layers, chunk == 0, chunk == last))
    ]
