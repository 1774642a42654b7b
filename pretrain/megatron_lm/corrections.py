"""One Adam step for a model whose generations have made different numbers of updates."""

from __future__ import annotations

import torch

from growth import Architecture, Box, Generations
from pretrain.checkpoint import Manifest, Reader


class Corrections:
    """Moments as a stack holds them that has one step for all: the bias correction of Adam (Kingma and Ba 2015, section
    3) with the step of the oldest generation gives each element what its own step gave it.

    step: of the oldest generation. With one generation the moments are as they are, bit for bit.
    """

    def __init__(self, manifest: Manifest, arch: Architecture) -> None:
        self.arch = arch
        steps = [birth["adam_step"] for birth in manifest.generations.get("each", ())]
        self.step = max(steps, default=0)
        self.generations = Generations.from_json(manifest.generations) if len(set(steps)) > 1 else None
        betas = manifest.config.get("train", {}).get("betas", (0.9, 0.95))
        self.factors = {
            kind: torch.tensor([(1 - beta**self.step) / (1 - beta**n) if n else 1.0 for n in steps])
            for kind, beta in zip(("exp_avg", "exp_avg_sq"), betas, strict=True)
        }

    def read(self, reader: Reader, kind: str, name: str, box: Box) -> torch.Tensor:
        """The content of a box of a tensor."""
        value = reader.read(kind, name, box)
        if self.generations is None or kind not in self.factors:
            return value
        born = self.generations.of(self.arch.tensor(name), box).long()
        return value * self.factors[kind][born]
