"""The search of PAR (Mandava et al., 2020): a supernet of which every slot is attention, an MLP or nothing.

Each of L slots adds a mixture of the three to the residual stream, with gates that are drawn by Gumbel-softmax (Jang et
al., 2017) from the slot's architecture weights.

As published: these rest for the first quarter of the steps (10,000 of 40,000); then they are trained on a fifth of the
samples, on which the model's own weights are not, with Adam at a rate of 1e-2 and a weight decay of 5e-4; the search
ends when fewer than a quarter of the slots still change.

What is scaled to the steps of a run: the rest is a share of them; every fifth step stands for a fifth of an epoch;
whether a slot has changed is asked after each tenth of the steps behind the rest, which is near an epoch there.

What is open in the paper is as in FBNet (Wu et al., 2019), which it follows: the temperature falls exponentially, from
5 to 5 exp(-0.045 * 90). The model's own weights are trained as the stage says, where the paper has LAMB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from growth import Architecture
from pretrain import families
from pretrain.config import Stage
from pretrain.config.orders import KINDS
from pretrain.data.draws import uniform
from pretrain.data.samples import Samples
from pretrain.families.common.reference import Weights
from pretrain.families.common.text import Feed
from pretrain.losses import Outputs
from pretrain.search.training import Training, optimizer_state, restore_optimizer

NOTHING = "-"
CHOICES = (*KINDS, NOTHING)
"""What a slot can be: a letter of an order, or nothing."""
REST = 0.25  # share of the steps
EVERY = 5  # steps, the last of which trains the architecture weights
RATE, WEIGHT_DECAY = 1e-2, 5e-4
WARM, COLD = 5.0, 5.0 * math.exp(-0.045 * 90)
CHECKS = 10
CHANGING = 0.25  # share of the slots
RECORDS = 200  # about so many are kept of the probabilities


class Supernet(Training):
    """The weights of the supernet, those of its architecture, and their training. rate: of the architecture weights.

    `records`: (step, probabilities [L, 3] of CHOICES). `last_check`: what the slots were at the last check.
    """

    def __init__(
        self, arch: Architecture, slots: int, stage: Stage, seed: int, device: torch.device, rate: float = RATE
    ) -> None:
        usual = arch.table.kinds[0]
        super().__init__(
            arch.replace({"layers": slots}, kinds=(usual,) * slots, calls=tuple(range(slots))), stage, seed, device
        )
        self.seed, self.total = seed, stage.train.steps()
        self.rest = round(REST * self.total)
        self.choice = torch.zeros(slots, len(CHOICES), dtype=torch.float64, requires_grad=True)
        self._choice_optimizer = torch.optim.Adam([self.choice], lr=rate, weight_decay=WEIGHT_DECAY)
        self._gates = torch.full((slots, len(CHOICES)), 1 / len(CHOICES))
        self.records: list[tuple[int, Tensor]] = []
        self.last_check, self._settled = "", False

    @property
    def slots(self) -> int:
        return len(self.choice)

    def finished(self) -> bool:
        return self._settled or super().finished()

    def probabilities(self) -> Tensor:
        """[L, 3]: of each slot being what CHOICES says."""
        return self.choice.detach().softmax(-1)

    def chosen(self) -> str:
        """The most probable choice of each slot, the first of several."""
        return "".join(CHOICES[i] for i in self.choice.argmax(-1).tolist())

    def temperature(self, step: int) -> float:
        """That of the gates in a step, counted from 0."""
        way = max(0, step - self.rest) / max(1, self.total - self.rest)
        return float(WARM * (COLD / WARM) ** way)

    def gates(self, step: int) -> Tensor:
        """[L, 3], differentiable in the architecture weights; the noise is a function of the seed and the step."""
        return gumbel_softmax(self.choice, self.temperature(step), self.seed, step)

    def outputs(self, samples: Samples) -> Outputs:
        return mixed(Weights(self.read, self.arch, torch.float32), samples, self._gates)

    def step(self, feed: Feed) -> float:
        """A step of the model's own weights, or one of the architecture's: see the module."""
        gates = self.gates(self.steps)
        self._gates = gates.detach().to(self.device, torch.float32)
        after = self.steps - self.rest
        if after >= 0 and after % EVERY == EVERY - 1:
            self._gates.requires_grad_()
            loss = self._gradients(feed)
            assert self._gates.grad is not None
            self._choice_optimizer.zero_grad()
            gates.backward(self._gates.grad.to(gates))  # once, for all micro-batches
            self._choice_optimizer.step()
        else:
            loss = super().step(feed)
        self._record()
        return loss

    def _record(self) -> None:
        after = self.steps - self.rest
        if after > 0 and after % max(EVERY, (self.total - self.rest) // CHECKS) == 0:
            chosen, before = self.chosen(), self.last_check
            self.last_check = chosen
            changed = sum(a != b for a, b in zip(chosen, before, strict=False))
            self._settled = bool(before) and changed < CHANGING * self.slots
        if self.steps % max(1, self.total // RECORDS) == 0 or self.finished():
            self.records.append((self.steps, self.probabilities()))

    def state(self) -> dict[str, Tensor]:
        steps, probabilities = [step for step, _ in self.records], [p for _, p in self.records]
        return {
            **super().state(),
            **optimizer_state("choice", self.choice, self._choice_optimizer),
            "settled": torch.tensor(self._settled),
            "last_check": torch.tensor([CHOICES.index(c) for c in self.last_check], dtype=torch.int64),
            "records.steps": torch.tensor(steps, dtype=torch.int64),
            "records.probabilities": torch.stack(probabilities) if steps else torch.empty(0),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        restore_optimizer("choice", self.choice, self._choice_optimizer, state)
        self._settled = bool(state["settled"])
        self.last_check = "".join(CHOICES[i] for i in state["last_check"].tolist())
        steps = state["records.steps"].tolist()
        self.records = list(zip(steps, state["records.probabilities"], strict=True))


def gumbel_softmax(weights: Tensor, temperature: float, seed: int, step: int) -> Tensor:
    """softmax((weights + Gumbel noise) / temperature) over the last axis, of weights [L, 3]."""
    drawn = uniform(seed, "gumbel", step, np.arange(weights.numel()).reshape(weights.shape))
    noise = -torch.log(-torch.log(torch.from_numpy(drawn.clip(2.0**-54))))
    return ((weights + noise) / temperature).softmax(-1)


def mixed(weight: Weights, samples: Samples, gates: Tensor) -> Outputs:
    """The logits of the supernet with these gates [L, 3]: slot i adds gates[i, 0] attention_i + gates[i, 1] mlp_i."""
    reference = families.of(weight.arch.family).reference
    x_BSD = reference.embed(weight, samples)
    for slot, row in enumerate(gates):
        parts = [
            gate * sublayer(weight, slot, x_BSD, samples)
            for gate, kind in zip(row, KINDS.values(), strict=False)
            for sublayer in reference.sublayers[kind]
        ]
        x_BSD = sum(parts, x_BSD)
    return reference.head(weight, x_BSD)
