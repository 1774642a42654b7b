"""LayerDrop (Fan et al. 2019, "Reducing transformer depth on demand with structured dropout"): in training some blocks,
or the attention and the MLP of some, are left out, and the stream goes by them.

Which these are is set when the forward pass of a micro-batch begins. It lies on the host, so that nothing waits for the
device, and among the states of Megatron-core's generators, for the reason in pretrain.families.common.dropout.
"""

from __future__ import annotations

import numpy as np
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import MakeViewlessTensor
from numpy.typing import NDArray
from torch import Tensor

ATTENTION, MLP = 0, 1
_STATE = "cambium layer drop"


def begin(left_out: NDArray[np.bool_] | None) -> None:
    """The forward pass of a micro-batch begins, and this is left out: bool [blocks, 1], or [blocks, 2], the attention
    and the MLP of each; None: nothing."""
    tracker = get_cuda_rng_tracker()
    tracker.set_states({**tracker.get_states(), _STATE: left_out})


def left_out(layer: int, part: int) -> bool:
    """Whether a part of a layer counted from 1 is left out of the pass over this micro-batch."""
    drawn = get_cuda_rng_tracker().get_states().get(_STATE)
    return drawn is not None and bool(drawn[layer - 1, part % drawn.shape[1]])


def passed_on(stream: Tensor) -> Tensor:
    """The stream behind a layer of which nothing runs: the same values, not copied, as another tensor.

    A pipeline rank frees what it has sent, and would free what it has received if the two were one tensor.
    """
    return MakeViewlessTensor.apply(stream, stream.requires_grad)
