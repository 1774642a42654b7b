"""The supernet: its mixture, its gates, its rest and its end, and a problem that attention alone solves."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from growth import Architecture
from pretrain import families
from pretrain.config import Stage
from pretrain.config.curriculum import curriculum_of
from pretrain.families.common.reference import Weights
from pretrain.search.candidates import of_order
from pretrain.search.supernet import CHOICES, COLD, EVERY, WARM, Supernet, gumbel_softmax, mixed
from tests.unit.pretrain.search.test_candidates import of

CPU = torch.device("cpu")
SLOTS = 3
IDS = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(5))


def drawn(arch: Architecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.4 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in arch.tensors().items()
    }


def weights_of(tensors: Mapping[str, Tensor], arch: Architecture) -> Weights:
    return Weights(lambda kind, name, box: tensors[name][box.slices()], arch, torch.float64)


@pytest.fixture(params=["llama2", "gpt2", "bert"])
def arch(request: pytest.FixtureRequest) -> Architecture:
    return of(request.param)


def test_a_slot_is_the_mean_of_its_three_choices(arch: Architecture) -> None:
    """Against the mean of what the slot gives for each choice; and the gradient of the gates by differences."""
    tensors, samples = drawn(arch), {"inputs": IDS}
    weight, reference = weights_of(tensors, arch), families.of(arch.family).reference

    def slowly(gates: Tensor) -> Tensor:
        x = reference.embed(weight, samples)
        for slot in range(SLOTS):
            attention, mlp = reference.sublayers["layer"]
            can_be = [x + attention(weight, slot, x, samples), x + mlp(weight, slot, x, samples), x]
            x = torch.stack([gates[slot, c] * can_be[c] for c in range(3)]).sum(0)
        return reference.head(weight, x)["words"]

    choice = torch.randn(SLOTS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gates = gumbel_softmax(choice, 0.7, seed=4, step=9)
    torch.testing.assert_close(mixed(weight, samples, gates)["words"], slowly(gates), rtol=0, atol=1e-12)

    def loss(choice: Tensor) -> Tensor:
        return mixed(weight, samples, gumbel_softmax(choice, 0.7, seed=4, step=9))["words"].square().mean()

    torch.autograd.gradcheck(loss, choice.requires_grad_())


def test_at_temperature_0_it_is_the_model_of_the_order(arch: Architecture) -> None:
    tensors, samples = drawn(arch), {"inputs": IDS}
    seen = set()
    for step in range(12):
        gates = gumbel_softmax(torch.zeros(SLOTS, 3, dtype=torch.float64), 1e-9, seed=2, step=step)
        chosen = "".join(CHOICES[i] for i in gates.argmax(-1).tolist())
        slots = [i for i, letter in enumerate(chosen) if letter != "-"]
        if not slots:
            continue
        seen |= set(chosen)
        model = of_order(arch, "".join(chosen[i] for i in slots))
        moved = {
            name: tensors[name if t.layer is None else t.spec.name.format(layer=slots[t.layer])]
            for name, t in model.tensors().items()
        }
        logits = families.of(arch.family).reference(
            lambda kind, name, box, moved=moved: moved[name][box.slices()], model, samples, torch.float64
        )
        assert torch.equal(mixed(weights_of(tensors, arch), samples, gates)["words"], logits["words"])
    assert seen == set(CHOICES)


def test_gates_choose_with_their_probabilities() -> None:
    """At a low temperature each is 1 as often as the softmax says (Gumbel-max), within 4 sigma."""
    choice, n = torch.tensor([[0.0, 1.0, -0.5]], dtype=torch.float64), 4000
    mean = torch.stack([gumbel_softmax(choice, 1e-6, seed=7, step=step) for step in range(n)]).mean(0)
    expected = choice.softmax(-1)
    assert ((mean - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


class FirstToken:
    """Text whose every label is the first token of its sample, which attention alone can know."""

    def __init__(self) -> None:
        self.cursor = 0

    def take(self, n: int, progress: float, rank: int, ranks: int) -> Any:
        generator = torch.Generator().manual_seed(self.cursor)
        ids = torch.randint(8, (n, 6), generator=generator)
        self.cursor += 1
        return SimpleNamespace(samples={"inputs": ids, "labels": ids[:, :1].expand(-1, 6).contiguous()})


def planted(steps: int) -> Stage:
    document = {
        "name": "planted",
        "data": {"corpus": "none"},
        "stages": [
            {
                "name": "only",
                "model": {"family": "gpt2", "vocab": 8, "hidden": 16, "layers": 2, "heads": 2, "ffn": 16},
                "train": {"tokens": steps * 16 * 6, "seq_len": 6, "global_batch": 16, "micro_batch": 8, "lr": 1e-2},
            }
        ],
    }
    return curriculum_of(document, Path("planted.yaml")).stages[0]


def test_it_finds_the_attention_that_a_problem_needs() -> None:
    stage, feed = planted(400), FirstToken()
    net = Supernet(stage.model.architecture(), 2, stage, 1, CPU, rate=0.1)
    while not net.finished():
        loss = net.step(feed)  # type: ignore[arg-type]
    assert "s" in net.chosen()
    assert loss < 1.5, "which is ln 8 = 2.08 without attention"


def test_rest_share_and_end() -> None:
    """Either the model's weights move in a step or those of the architecture, these only after the rest and then in
    every fifth; it has ended when no slot has changed between two checks."""
    stage, feed = planted(80), FirstToken()
    net = Supernet(stage.model.architecture(), 4, stage, 1, CPU, rate=1e-6)
    moved = []
    while not net.finished():
        before = {name: w.detach().clone() for name, w in net.weights.items()}, net.choice.detach().clone()
        net.step(feed)  # type: ignore[arg-type]
        own = any(not torch.equal(before[0][name], w) for name, w in net.weights.items())
        architecture = not torch.equal(before[1], net.choice)
        assert own != architecture
        moved.append(architecture)
    assert net.rest == 20
    assert [i for i, m in enumerate(moved) if m] == [20 + EVERY - 1, 20 + 2 * EVERY - 1]
    assert net.steps == 20 + 2 * 6, "two checks, after a tenth of 60 steps each"
    assert net.temperature(0) == net.temperature(20) == WARM
    assert net.temperature(80) == pytest.approx(COLD)
