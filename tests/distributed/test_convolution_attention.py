"""Convolution Attention on real ranks: every layout is the reference model, padded or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import growth
from growth import Architecture, Box
from growth.family import family
from pretrain.config.levels import kinds
from pretrain.data.documents import STARTS
from pretrain.data.samples import Samples, causal, part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.families.convolution_attention.padding import starts
from pretrain.families.reference import logits, objective
from pretrain.kernels import fused
from pretrain.layout import Layout
from pretrain.layout.work import totals
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, losses, stage
from tools import export_hf, generate, plan, show, verify

SIZES = {"vocab": 41, "positions": 128, "hidden": 8, "heads": 4, "head_dim": 4, "ffn": 12}
LENGTH, SAMPLES, MICRO_BATCH = 128, 4, 2
KINDS = kinds(family("convolution_attention"), (1, 1, 1, 1, 1, 1, 1))
ARCH = Architecture(
    "convolution_attention", {**SIZES, **family("convolution_attention").fixed, "layers": len(KINDS)}, kinds=KINDS
)
LAYOUTS: dict[str, tuple[dict[str, Any], Numerics]] = {
    "one": ({}, Numerics()),
    "kernels": ({}, Numerics(compile=True)),
    "full": ({}, Numerics(recompute="full")),
    "tp2": ({"tp": 2}, Numerics()),
    "tp2-sp": ({"tp": 2, "sequence_parallel": True}, Numerics()),
    "tp2-sp-kernels-full": ({"tp": 2, "sequence_parallel": True}, Numerics(compile=True, recompute="full")),
    "dp2": ({"dp": 2}, Numerics()),
    "pp2": ({"pp": 2}, Numerics()),
    "pp2, cut at the second level": ({"pp": 2, "pipeline": [4, 9]}, Numerics()),
}


def samples() -> Samples:
    """Drawn text, half of whose samples are padded."""
    ids = torch.randint(0, SIZES["vocab"], (SAMPLES, LENGTH + 64), generator=torch.Generator().manual_seed(0))
    return {**causal(ids, 64), STARTS: starts(torch.tensor([0, 63, 0, 21]))}


def measured(how: dict[str, Any], numerics: Numerics) -> Any:
    """(logits, where they are; loss and gradient norm of two steps, the second of samples without padding)."""
    fused.observer = lambda kernel, args: kernel.eager(*args)  # the kernels' formulas, without a compiler
    layout = Layout.make(totals(ARCH, LENGTH), **how)
    engine = Engine(ARCH, layout, numerics, Adam(clip=0.5), seq_len=LENGTH, micro_batch=MICRO_BATCH)
    ranks.begin(engine)
    said = engine.logits(samples())
    plain = {name: rows for name, rows in samples().items() if name != STARTS}
    steps = [engine.train_step(part(each, engine.dp_rank, layout.dp), 1e-2) for each in (samples(), plain)]
    return None if said is None else said.numpy(), [(step.loss, step.grad_norm) for step in steps]


def all_of(names: list[str]) -> Any:
    return [measured(*LAYOUTS[name]) for name in names]


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, float, float]:
    """Logits, loss and norm of the gradient of the reference model in double precision."""
    plan = growth.initial(ARCH, 3, 0.05)
    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), None).double().requires_grad_()  # type: ignore[arg-type]
        for name, t in ARCH.tensors().items()
    }

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return weights[name]

    loss = objective(read, ARCH, samples(), torch.float64)
    norm = torch.stack([g.norm() for g in torch.autograd.grad(loss, list(weights.values()))]).norm()
    with torch.no_grad():
        return logits(read, ARCH, samples(), torch.float64).numpy(), loss.item(), norm.item()


@pytest.mark.parametrize("world", [1, 2])
def test_every_layout_is_the_reference_model(world: int, expected: Any) -> None:
    names = [name for name, (how, _) in LAYOUTS.items() if (2 if how else 1) == world]
    said, loss, norm = expected
    second = set()
    for name, each in zip(names, zip(*run(world, all_of, names), strict=True), strict=True):
        own = next(found for found, _ in each if found is not None)
        assert np.abs(own - said).max() <= 1e-5 * np.abs(said).max(), name
        for _, steps in each:
            assert steps[0] == pytest.approx((loss, norm), rel=1e-5), name
            second.add(tuple(round(value, 3) for value in steps[1]))
    assert len(second) == 1


def test_it_trains_grows_and_resumes(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wider, with more of all, and with more blocks inside the levels, from DP2 to TP2; the event keeps the function,
    and a resume is bitwise."""
    small = {"family": "convolution_attention", "hidden": 16, "heads": 4, "ffn": 24, "levels": [1, 1, 1, 1, 1]}
    large = {**small, "vocab": 381, "hidden": 20, "heads": 6, "ffn": 30, "levels": [1, 2, 2, 1, 2]}
    stages = [
        {"name": "small", "model": {**small, "vocab": 350}, "parallel": {"dp": 2}},
        {"name": "large", "model": {**large, "head_dim": 4}, "parallel": {"tp": 2}},
    ]
    path = str(curriculum(corpus, tmp_path / "run", stages=stages))
    folder = tmp_path / "run/run"
    assert run(2, stage, path, "small", []) == ["", ""]
    assert run(2, stage, path, "large", [], 4) == ["", ""]
    assert run(2, stage, path, "large", []) == ["", ""]
    resumed = losses(folder / "large")
    assert plan.main([path]) == 0
    assert show.main([str(folder / "large")]) == 0
    assert verify.main([str(folder / "large"), "--parent", str(folder / "small")]) == 0
    straight = str(curriculum(corpus, tmp_path / "again", stages=stages))
    shutil.copytree(folder / "small", tmp_path / "again/run/small")
    assert run(2, stage, straight, "large", []) == ["", ""]
    assert losses(tmp_path / "again/run/large") == resumed
    assert "convolution_attention" in capsys.readouterr().out
    exported = str(tmp_path / "export")
    assert export_hf.main([str(folder / "large"), exported]) == 0
    capsys.readouterr()
    texts = []
    for model in (str(folder / "large"), exported):
        assert generate.main([model, "--prompt", "bada", "--tokens", "24", "--temperature", "0", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["texts"][0]["text"])
    assert len(set(texts)) == 1
    assert texts[0].startswith("bada")
