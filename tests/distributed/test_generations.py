"""The optimizer of a real engine against blocks in parameter groups of their own, through growths and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import growth
from growth import Architecture, Box
from pretrain.checkpoint import KINDS, Checkpointer, Reader
from pretrain.data.samples import part
from pretrain.engine.engine import Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import boxes, fill, publish
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_layouts import LAYOUTS, assemble, world

MIDDLE = ranks.GQA.replace({"vocab": 203, "hidden": 48, "layers": 4})
Logical = dict[tuple[str, str], np.ndarray]


class Blocks:
    """The slow way: on one rank's partition, torch.optim.AdamW in double precision with a group for each generation
    with and without weight decay. Its values come from whole logical tensors, never from the store."""

    def __init__(
        self, engine: Engine, state: State, start: Logical, steps: list[int], weight_decays: list[float]
    ) -> None:
        (self.partition,) = engine.adam.param_groups[0]["params"]
        self.engine, self.steps = engine, list(steps)
        self.values = {kind: torch.zeros(len(self.partition), dtype=torch.float64) for kind in KINDS}
        ids, decays = (torch.full((len(self.partition),), -1) for _ in range(2))
        for owned in engine.owned:
            for box in owned.boxes:
                for kind in KINDS:
                    values = torch.from_numpy(start[kind, box.tensor][box.box.slices()])
                    self._view(self.values[kind], owned, box).copy_(values)
                self._view(ids, owned, box).copy_(state.generations.of(state.arch.tensor(box.tensor), box.box))
                self._view(decays, owned, box).fill_(len(state.arch.tensor(box.tensor).shape) > 1)
        self.padding = int((ids < 0).sum())
        self.groups: list[tuple[int, Tensor, torch.nn.Parameter]] = []
        groups = []
        for g, weight_decay in enumerate(weight_decays):
            for decay in (0, 1):
                mask = (ids == g) & (decays == decay)
                parameter = torch.nn.Parameter(self.values["weight"][mask])
                self.groups.append((g, mask, parameter))
                groups.append({"params": [parameter], "weight_decay": decay * weight_decay})
        defaults = engine.adam.param_groups[0]
        self.adam = torch.optim.AdamW(groups, betas=defaults["betas"], eps=defaults["eps"])
        for g, mask, parameter in self.groups:
            self.adam.state[parameter] = {
                "step": torch.tensor(float(steps[g])),
                "exp_avg": self.values["exp_avg"][mask],
                "exp_avg_sq": self.values["exp_avg_sq"][mask],
            }

    @staticmethod
    def _view(flat: Tensor, owned: Any, box: Any) -> Tensor:
        return box.view(flat[owned.offset : owned.offset + owned.weight.numel()])

    def step(self, lrs: list[float]) -> None:
        for (g, mask, parameter), group in zip(self.groups, self.adam.param_groups, strict=True):
            parameter.grad, group["lr"] = self.partition.grad[mask].double(), lrs[g]
        self.adam.step()
        self.steps = [n + 1 for n in self.steps]

    def collected(self) -> Any:
        for _, mask, parameter in self.groups:
            state = {"weight": parameter.detach(), **self.adam.state[parameter]}
            for kind in KINDS:
                self.values[kind][mask] = state[kind]
        return [
            (kind, box.tensor, box.box, self._view(self.values[kind], owned, box).float().numpy())
            for kind in KINDS
            for owned in self.engine.owned
            if owned.parameter.owner
            for box in owned.boxes
        ]


def leg(
    arch: Architecture,
    how: dict[str, Any],
    path: str | None,
    before: tuple[Logical, list[int]] | None,
    lrs: list[float],
    weight_decays: list[float],
    root: str,
    precision: str,
) -> Any:
    """Four steps of an engine and of the blocks beside it, then a checkpoint.

    From nothing, from the checkpoint at path, or, if that is of another shape, grown from it.
    Returns (values of the engine, of the blocks, Adam steps of both, padding, losses)."""
    engine = ranks.engine_for(arch, how, Numerics(precision))
    if path is None:
        state = ranks.begin(engine)
        start = {
            (kind, name): growth.initial(arch, 3, 0.05).evaluate(name, Box.whole(t.shape), never, kind).numpy()
            for kind in KINDS
            for name, t in arch.tensors().items()
        }
        steps = [0]
    else:
        assert before is not None
        with Reader(Path(path)) as reader:
            old = State.from_reader(reader)
            plan = growth.identity(arch)
            if old.arch != arch:
                plan = growth.between(old.arch, arch, ranks.POLICY, seed=len(old.births), init_std=0.05)
            generations = plan.generations(old.generations)
            births = old.births
            if generations.count > len(births):
                births = (*births, Birth(0, "later", 0))
            state = State(plan.new, generations, births, Progress(), None)
            fill(engine, plan, reader)
        publish(engine, state)
        values, steps = before
        steps = [*steps, 0][: generations.count]

        def read(kind: str, name: str, box: Box) -> Tensor:
            return torch.from_numpy(values[kind, name][box.slices()])

        start = {
            (kind, name): plan.evaluate(name, Box.whole(t.shape), read, kind).numpy()
            for kind in KINDS
            for name, t in plan.new.tensors().items()
        }
    engine.adam.weight_decays = weight_decays
    blocks = Blocks(engine, state, start, steps, weight_decays)
    update = engine.adam.step

    def both(closure: Any = None) -> None:
        blocks.step(engine.adam.lrs)
        update()

    engine.adam.step = both  # type: ignore[method-assign]
    losses = []
    for n, batch in enumerate(ranks.batches(arch, 4)):
        samples = part(batch, engine.dp_rank, engine.layout.dp)
        losses.append(engine.train_step(samples, [lr / (n + 1) for lr in lrs]).loss)
    with Checkpointer(Path(root)) as checkpointer:
        checkpointer.save(0, boxes(engine), state.fields("leg", {}, engine.adam.steps))
    return ranks.collected(engine), blocks.collected(), engine.adam.steps, blocks.steps, blocks.padding, losses


def never(kind: str, name: str, box: Box) -> Tensor:
    raise AssertionError(name)


Leg = tuple[Architecture, str, list[float], list[float]]
BORN: Leg = (ranks.GQA, "dp3", [1e-2], [0.1])
GROWN: Leg = (MIDDLE, "tp2-pp2", [2e-3, 1e-2], [0.1, 0.02])
LOADED: Leg = (MIDDLE, "dp3", [2e-3, 1e-2], [0.1, 0.02])
GROWN_AGAIN: Leg = (ranks.GROWN, "dp3", [1e-3, 0.0, 1e-2], [0.1, 0.02, 0.3])


def check(legs: list[Leg], root: Path, precision: str) -> list[float]:
    """Engine and blocks agree after every leg. Returns all losses."""
    path, before, losses = None, None, []
    for number, (arch, name, lrs, weight_decays) in enumerate(legs):
        how, folder = LAYOUTS[name], root / str(number)
        found = run(world(how), leg, arch, how, path, before, lrs, weight_decays, str(folder), precision)
        ours, blocks = (assemble(arch, [rank[i] for rank in found]) for i in (0, 1))
        lr = 4 * (number + 1) * max(lrs)
        for (kind, tensor), expected in blocks.items():
            value = ours[kind, tensor]
            # Each step rounds a weight by half a unit in the last place and its update by a little more; the sums of
            # the moments cancel, so theirs is the rounding of the largest gradient of the tensor.
            largest = np.sqrt(np.abs(blocks["exp_avg_sq", tensor]).max())
            scale = {
                "weight": 4 * (number + 1) * 2**-24 * np.abs(expected) + 1e-5 * lr,
                "exp_avg": 1e-5 * largest,
                "exp_avg_sq": 1e-5 * largest**2,
            }[kind]
            assert (np.abs(value - expected) <= scale).all(), (number, kind, tensor, np.abs(value - expected).max())
        for _, _, steps, expected_steps, _, said in found:
            assert steps == expected_steps == [4 * (number + 1 - born) for born in BIRTHS[: len(steps)]]
            assert said == found[0][-1]
        if name == "dp3" and number == 0:
            assert sum(rank[4] for rank in found) > 0, "there should be padding"
        path, before = str(folder / "step-00000000"), (blocks, found[0][3])
        losses += found[0][-1]
    return losses


BIRTHS = [0, 1, 3]  # the legs in which generations are born


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Born under DP3 with padding; grown under TP2 x PP2, with a rate and a weight decay for each generation; loaded
    under DP3; grown again there, with the middle generation frozen. The losses."""
    return check([BORN, GROWN, LOADED, GROWN_AGAIN], tmp_path_factory.mktemp("fp32"), "fp32")


def test_generations_are_parameter_groups_wherever_they_are(fp32: list[float]) -> None:
    assert len(fp32) == 16
    assert np.isfinite(fp32).all()


def test_generations_in_bf16(fp32: list[float], tmp_path: Path) -> None:
    """With bf16 weights and gradients accumulated in fp32, the fp32 masters and moments in ZeRO's partitions are
    updated as exactly, and the losses are those of fp32 to bf16's precision."""
    bf16 = check([BORN, GROWN, LOADED], tmp_path, "bf16")
    # A number of bf16 is off by up to 2^-9 of itself; so are the last hidden states and with them the logits, whose
    # part in a loss of log(vocab) or so is of order one. Twelve updates on such gradients drift by as much again.
    np.testing.assert_allclose(bf16, fp32[:12], rtol=2**-8)
    assert bf16 != fp32[:12]
