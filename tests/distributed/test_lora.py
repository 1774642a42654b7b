"""Low-rank adapters on real ranks: one layout is as another and as the reference model, over a stage and the next."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import growth
from growth import Architecture, Box, identity
from growth.adapters import Adapters
from pretrain.checkpoint import KINDS, Reader, find
from pretrain.config import Lora
from pretrain.data.samples import part
from pretrain.engine.engine import Engine
from pretrain.engine.frozen import Frozen
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import fill, publish
from pretrain.estimate.flops import fixed
from pretrain.families.gpt2.hf import FORM as HF
from pretrain.families.reference import objective
from pretrain.hf.adapter import config, tensors
from pretrain.kernels import fused
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.distributed import ranks, test_dropout
from tests.distributed.harness import run
from tests.distributed.test_families import GPT2
from tests.distributed.test_growth_on_load import same
from tests.distributed.test_layouts import assemble
from tests.distributed.test_recipes import SMALL
from tests.distributed.test_stage import stage, state
from tools import verify

BOTH = Adapters(3, 6.0, ("attention", "mlp"))
SHARED = ranks.GQA.replace({"layers": 3}, calls=(0, 1, 0, 2)).with_adapters(BOTH)
CASES: list[tuple[Architecture, Lora]] = [
    (SHARED, Lora(3, 6.0, ("attention", "mlp"), rest="train")),
    (GPT2.with_adapters(Adapters(2, 2.0, ("attention",))), Lora(2)),
]
LAYOUTS: list[dict[str, Any]] = [
    {"tp": 2, "dp": 2},
    {"pp": 2, "dp": 2, "uneven": True},
    {"tp": 2, "pp": 2, "sequence_parallel": True},
]


class Drawn:
    """In place of a checkpoint's reader: every tensor is random, B too, and there are no moments."""

    def __init__(self, arch: Architecture) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weights = {
            name: torch.randn(tensor.shape, generator=draw) * 0.1 + (tensor.spec.init == "one")
            for name, tensor in arch.tensors().items()
        }

    def has(self, kind: str) -> bool:
        return kind == "weight"

    def read(self, kind: str, name: str, box: Box) -> torch.Tensor:
        return self.weights[name][box.slices()]


def gradient(engine: Engine, found: list[Any], loss: float, norm: float) -> str:
    """Into `found`, the boxes of the reduced gradient that this rank would write, in a step that is then not made."""
    for owned in engine.owned:
        flat = engine._gradients.partition[owned.offset :][: owned.weight.numel()]
        if owned.parameter.owner:
            for kind in KINDS:
                found += [(kind, b.tensor, b.box, b.view(flat).clone().numpy()) for b in owned.boxes]
    return "only looked at"


def trained(cases: list[tuple[Architecture, Lora]], hows: list[dict[str, Any]], compiled: bool = False) -> list[Any]:
    """For each architecture and layout the gradient of a first step, [(loss, grad norm)] of five in which what enters
    the adapters is dropped, and the values."""
    fused.observer = lambda kernel, args: kernel.eager(*args)
    results = []
    for arch, lora in cases:
        for how in hows:
            spread = {k: v for k, v in how.items() if k != "uneven"}
            spread |= {"pipeline": [1, arch.depth - 1]} if "uneven" in how else {}
            engine = ranks.engine_for(arch, spread, Numerics(compile=compiled, lora_dropout=0.2))
            fill(engine, identity(arch), Drawn(arch))  # type: ignore[arg-type]
            first = growth.initial(arch, 0, 1.0).generations()
            publish(engine, State(arch, first, (Birth(0, "first", 0),), Progress(), None))
            engine.freeze(Frozen.of(arch, first, (), fixed(arch, lora)))
            (batch,), found = ranks.batches(arch, 1), list[Any]()
            mine = part(batch, engine.dp_rank, engine.layout.dp)
            looked = engine.train_step(mine, 1e-2, partial(gradient, engine, found)).loss  # without a key
            losses = test_dropout.steps(engine, 0, 5)
            assert abs(losses[0][0] / looked - 1) > 1e-4
            results.append((found, losses, ranks.collected(engine)))
            engine.free()
    return results


def test_layouts_are_one_process_and_the_reference_model() -> None:
    """TP2 x DP2, PP2 x DP2 (uneven) and TP2 x PP2 with sequence parallelism; fused kernels too."""
    (one,) = run(1, trained, CASES, [{}])
    (kernels,) = run(1, trained, CASES, [{}], True)
    four = run(4, trained, CASES, LAYOUTS)
    for c, (arch, lora) in enumerate(CASES):
        drawn = {name: weight.double().requires_grad_() for name, weight in Drawn(arch).weights.items()}
        read = partial(lambda drawn, kind, name, box: drawn[name][box.slices()], drawn)
        loss = objective(read, arch, ranks.batches(arch, 1)[0], torch.float64)
        wanted = dict(zip(drawn, torch.autograd.grad(loss, list(drawn.values())), strict=True))
        _, losses, values = one[c]
        after = assemble(arch, [values])
        for number in range(-2, len(LAYOUTS)):
            each = [rank[c * len(LAYOUTS) + number] for rank in four] if number >= 0 else [(one, kernels)[number][c]]
            found = assemble(arch, [rank[0] for rank in each])
            for name, expected in wanted.items():
                frozen = Frozen(fixed(arch, lora)).has(arch, name)
                want = 0.0 if frozen else expected.numpy()
                np.testing.assert_allclose(found["weight", name], want, atol=2e-6, err_msg=f"{number} {name}")
                assert frozen == np.array_equal(after["weight", name], Drawn(arch).weights[name].numpy())
            for _, theirs, _ in each:
                np.testing.assert_allclose(theirs, losses, rtol=1e-5)
            for key, value in assemble(arch, [rank[2] for rank in each]).items():
                np.testing.assert_allclose(value, after[key], atol=2e-3 if key[0] == "weight" else 1e-5)


HOW = {"tp": 2, "pp": 2, "sequence_parallel": True}


def life(root: str) -> Any:
    """Four steps; two, a checkpoint and two more; and what grows of the checkpoint."""
    straight = ranks.engine_for(SHARED, HOW)
    ranks.begin(straight)
    losses, values = ranks.train(straight, ranks.batches(SHARED, 4)), ranks.collected(straight)
    ranks.trained_and_saved(SHARED, HOW, 2, root)
    path = str(Path(root) / "step-00000000")
    _, later, final = ranks.loaded(SHARED, HOW, path, 2, None)
    return losses, values, later, final, ranks.grown(NEXT, HOW, path, 2, {"layers": "untie"})


NEXT = ranks.GQA.replace({"layers": 4, "ffn": 56}).with_adapters(Adapters(2, 2.0, ("attention",)))


def test_a_resume_is_bitwise_and_growth_commutes_with_sharding(tmp_path: Path) -> None:
    """Untied, wider and with other adapters, from the merged ones; weights and both moments."""
    found = run(4, life, str(tmp_path))
    for losses, values, later, final, _ in found:
        assert later == losses[2:]
        for before, after in zip(values, final, strict=True):
            assert before[:3] == after[:3]
            assert np.array_equal(before[3], after[3])
    plan = growth.between(SHARED, NEXT, {"layers": "untie"}, seed=11, init_std=0.05)
    with Reader(tmp_path / "step-00000000") as reader:
        whole = {
            (kind, name): plan.evaluate(name, Box.whole(tensor.shape), reader.read, kind).numpy()
            for kind in KINDS
            for name, tensor in plan.new.tensors().items()
        }
    same(assemble(plan.new, [rank[4][0] for rank in found]), whole)
    assert found[0][4][4] == [4, 2]
    assert not any(value.any() for (_, name), value in whole.items() if name.endswith("lora_B.weight"))
    assert plan.operators[0] == "adapters: merge"


STEPS, RATE = 20, 1e-3


def losses(arch: Architecture, lora: Lora) -> list[float]:
    """Of steps with the drawn model in one process."""
    engine = ranks.engine_for(arch, {})
    fill(engine, identity(arch), Drawn(arch))  # type: ignore[arg-type]
    first = growth.initial(arch, 0, 1.0).generations()
    publish(engine, State(arch, first, (Birth(0, "first", 0),), Progress(), None))
    engine.freeze(Frozen.of(arch, first, (), fixed(arch, lora)))
    return [engine.train_step(batch, RATE).loss for batch in ranks.batches(arch, STEPS)]


def test_the_losses_are_those_of_pefts_own_layers(tmp_path: Path) -> None:
    """GPT-2's attention and MLP, from the same weights, with torch's AdamW; queries, keys and values apart in both."""
    import peft  # seconds
    import transformers

    arch, lora = GPT2.with_adapters(BOTH), Lora(3, 6.0, ("attention", "mlp"))
    (ours,) = run(1, losses, arch, lora)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**HF.config(arch)))
    drawn = Drawn(arch)

    def read(name: str, box: Box) -> torch.Tensor:
        return drawn.read("weight", name, box)

    rows = {name: HF.stored(name) for name in HF.names(arch)}
    weights = {name: row.read(arch, read, Box.whole(row.shape(arch))) for name, row in rows.items()}
    base.load_state_dict(weights, strict=False)
    model = peft.get_peft_model(base, peft.LoraConfig(**config(arch, HF, "") | {"inference_mode": False}))
    factors = dict(tensors(arch, HF, drawn.read))
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert named.keys() == factors.keys()
    masks = []
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(factors[name])
            if ".attn.c_attn.lora_B" in name:  # one matrix of three blocks there: what lies between them stays zero
                masks.append((parameter, parameter != 0))
    optimizer = torch.optim.AdamW(named.values(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    theirs = []
    for batch in ranks.batches(arch, STEPS):
        output = model(batch["inputs"]).logits
        loss = torch.nn.functional.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        for parameter, mask in masks:
            assert parameter.grad is not None
            parameter.grad *= mask
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        optimizer.step()
        theirs.append(float(loss))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert theirs[-1] < theirs[0]


def test_progressive_diverging(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """configs/gpt2_diverging.yaml, small: one process, TP2 with sequence parallelism, PP2; both events are exact, all
    that is new can learn, and in a stage with adapters attention's own matrices stay bit for bit."""
    found: dict[str, Any] = yaml.safe_load(Path("configs/gpt2_diverging.yaml").read_text())
    for section, keys in SMALL.items():
        found[section] = {**found.get(section, {}), **keys}
    found["model"] |= {"layers": 4, "positions": 32}
    found |= {"name": "run", "output": str(tmp_path), "data": {"corpus": str(corpus), "validation_fraction": 0.05}}
    for each, parallel in zip(found["stages"], ({}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}), strict=True):
        each["parallel"] = parallel
    path = tmp_path / "curriculum.yaml"
    path.write_text(yaml.safe_dump(found))
    states, manifests = [], []
    for each, world in zip(found["stages"], (1, 2, 2), strict=True):
        assert set(run(world, stage, str(path), each["name"], [])) == {""}
        folder = tmp_path / "run" / each["name"] / "checkpoints"
        states.append(state(folder))
        manifests.append(find(folder).manifest)
    for number, manifest in enumerate(manifests[1:], 1):
        assert manifest is not None
        event = manifest.events[-1]
        plan = growth.Plan.from_json(event["plan"])
        assert event["certificate"]["preserved"]
        assert event["certificate"]["error"] < 2e-6
        assert event["certificate"]["dead_share"] == 0
        assert plan.operators[-2:] == ("layers: untie", "adapters: attach")
        before, after = states[number - 1], states[number]

        def read(kind: str, name: str, box: Box, before: Any = before) -> torch.Tensor:
            return torch.from_numpy(before[kind, name][box.slices()])

        for (kind, name), value in after.items():
            start = plan.evaluate(name, Box.whole(value.shape), read, kind).numpy()
            rests = "attn" in name and "lora" not in name
            assert np.array_equal(value, start) == rests, (kind, name)
    assert verify.main([str(tmp_path / "run/own"), "--parent", str(tmp_path / "run/shared-2")]) == 0
    assert "adapters: merge, layers: untie, adapters: attach" in capsys.readouterr().out
