"""The keys of dropout: of a step, and of its samples at each place of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretrain.data.draws import keyed


def step_key(seed: int, stage: str, step: int) -> int:
    """Of an optimizer step: a function of the curriculum's seed, the stage's name and the step's number."""
    return int(keyed(seed, "dropout", stage, step))


def sample_keys(key: int, first: int, samples: int, places: int) -> Tensor:
    """Of the samples from number `first` of the global batch on, at every place of a model: int32 [places, n, 4]."""
    numbers = np.arange(first, first + samples)[:, None]
    words = keyed(key, np.arange(places)[:, None, None], numbers, np.arange(2))
    return torch.from_numpy(words.view(np.int32))
