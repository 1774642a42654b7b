"""Where a Megatron-core model drops: after its embedding, and in each layer the weights of the attention, its output
and that of the MLP (Vaswani et al. 2017, section 5.4).

The keys of a micro-batch are set when its forward pass begins. They lie among the states of Megatron-core's generators:
recomputation puts these back to what they were in the pass that it repeats, whichever micro-batch a pipeline has come
to since, and that is all that is needed of them here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from pretrain.kernels.dropout import Drop, Dropout, DropPart, drop_channels

EMBEDDING = 0
WEIGHTS, ATTENTION, MLP = 1, 2, 3  # of the first layer
IN_A_LAYER = 3
LINEARS = 4  # of a layer, at most: before the adapter of each, behind all places of all layers
_STATE = "cambium dropout"


@dataclass(frozen=True)
class Keys:
    """Of some samples at each place of a model, int32 [places, samples, 4]: on the device, and on the host."""

    device: Tensor
    host: Tensor

    def __getitem__(self, samples: slice) -> Keys:
        return Keys(self.device[:, samples], self.host[:, samples])


def places(layers: int, adapters: bool = False) -> int:
    """The places of a model with so many layers. adapters: those before adapters too."""
    return 1 + (IN_A_LAYER + LINEARS * adapters) * layers


def begin(keys: Keys | None) -> None:
    """The forward pass of a micro-batch begins, and these are its keys; None: nothing is dropped."""
    tracker = get_cuda_rng_tracker()
    tracker.set_states({**tracker.get_states(), _STATE: keys})


def _keys() -> Keys | None:
    return get_cuda_rng_tracker().get_states().get(_STATE)


def of_stream(config: TransformerConfig, place: int, stream: Tensor, layer: int = 1) -> Drop | None:
    """What is dropped of a stream [S, B, hidden] at a place, in a layer counted from 1; None: nothing."""
    if not config.hidden_dropout or (keys := _keys()) is None:
        return None
    rank = parallel_state.get_tensor_model_parallel_rank() if config.sequence_parallel else 0
    at = place + IN_A_LAYER * (layer - 1)
    return Drop(keys.device[at], config.hidden_dropout, rank * stream.shape[0])


def of_adapter(p: float, at: int, first: int, column: int) -> DropPart | None:
    """What is dropped before an adapter, at that place, of what has these numbers of its first row and column."""
    if not p or (keys := _keys()) is None:
        return None
    return DropPart(keys.device[at], p, first, column)


def of_weights(p: float, layer: int, heads: int) -> Drop | None:
    """What is dropped of an attention's weights in a layer counted from 1, by a rank with so many heads."""
    if not p or (keys := _keys()) is None:
        return None
    at = WEIGHTS + IN_A_LAYER * (layer - 1)
    return Drop(keys.device[at], p, parallel_state.get_tensor_model_parallel_rank() * heads)


def seed_fused(layer: int) -> bool:
    """Seed torch's generator of this device for an attention that is one kernel, and draws by itself, from the first
    sample of the micro-batch, the layer and the tensor-parallel rank; whether there is anything to draw."""
    if (keys := _keys()) is None:
        return False
    key = keys.host[WEIGHTS + IN_A_LAYER * (layer - 1), 0, :2].contiguous().view(torch.int64)
    torch.cuda.manual_seed(int(key) + parallel_state.get_tensor_model_parallel_rank())
    return True


class EmbeddingDropout(torch.nn.Module):
    """In place of Megatron-core's `embedding_dropout`. fused: whether it is a kernel."""

    def __init__(self, config: TransformerConfig, fused: bool) -> None:
        super().__init__()
        self.config, self.run = config, drop_channels if fused else drop_channels.eager

    def forward(self, embedded_SBD: Tensor) -> Tensor:
        drop = of_stream(self.config, EMBEDDING, embedded_SBD) if self.training else None
        return embedded_SBD if drop is None else Dropout.apply(embedded_SBD, drop, self.run)
