"""What is dropped in an optimizer step: keys of its samples at each place of a model, and blocks that are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config import LayerDrop
from pretrain.data.draws import keyed, uniform
from pretrain.engine.megatron import Numerics
from pretrain.families.common import dropout, layer_drop


def step_key(seed: int, stage: str, step: int) -> int:
    """Of an optimizer step: a function of the curriculum's seed, the stage's name and the step's number."""
    return int(keyed(seed, "dropout", stage, step))


def sample_keys(key: int, first: int, samples: int, places: int) -> Tensor:
    """Of the samples from number `first` of the global batch on, at every place of a model: int32 [places, n, 4]."""
    numbers = np.arange(first, first + samples)[:, None]
    words = keyed(key, np.arange(places)[:, None, None], numbers, np.arange(2))
    return torch.from_numpy(words.view(np.int32))


def left_out(key: int, first: int, count: int, blocks: int, drop: LayerDrop) -> NDArray[np.bool_]:
    """Which blocks are left out of `count` micro-batches, from number `first` of the global batch on: bool [n, blocks,
    1], or with drop.sublayers [n, blocks, 2], the attention and the MLP of each."""
    numbers = np.arange(first, first + count)[:, None, None]
    return uniform(key, "layer_drop", numbers, np.arange(blocks)[:, None], np.arange(1 + drop.sublayers)) < drop.p


@dataclass(frozen=True)
class Drops:
    """What is dropped of the samples of a data-parallel rank in a step: the keys for dropout, and what is left out of
    each micro-batch (see `left_out`); None: nothing."""

    keys: dropout.Keys | None = None
    blocks: NDArray[np.bool_] | None = None

    @staticmethod
    def of(
        key: int | None,
        numerics: Numerics,
        blocks: int,
        first: int,
        samples: int,
        micro_batch: int,
        moved: Callable[[Tensor], Tensor],
    ) -> Drops:
        """Of the samples from number `first` of the global batch on, in a step with this key, of a model with so many
        blocks. moved: onto the device."""
        keys = left = None
        if key is not None and (numerics.dropout or numerics.attention_dropout or numerics.lora_dropout):
            host = sample_keys(key, first, samples, dropout.places(blocks, numerics.lora_dropout > 0))
            keys = dropout.Keys(moved(host), host)
        if key is not None and numerics.layer_drop.p:
            left = left_out(key, first // micro_batch, samples // micro_batch, blocks, numerics.layer_drop)
        return Drops(keys, left)

    def begin(self, number: int, samples: slice) -> None:
        """The forward pass of micro-batch `number` of these samples begins, on the model that is called next."""
        dropout.begin(self.keys and self.keys[samples])
        layer_drop.begin(None if self.blocks is None else self.blocks[number])


NOTHING = Drops()
