"""Families of decoders beside LLaMA-2 on real ranks: every layout is one process, and growth commutes with sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import growth
from growth import Architecture, Box
from pretrain.checkpoint import KINDS, Reader
from pretrain.engine.megatron import Numerics
from pretrain.families import reference
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_growth_on_load import same
from tests.distributed.test_layouts import LAYOUTS, assemble

SIZES = {"vocab": 101, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 12, "ffn": 48}
ARCHITECTURES = {name: Architecture(name, SIZES, {"norm_eps": 1e-3}) for name in ("qwen3", "qwen3_tied", "qwen2_tied")}
ARCHITECTURES["llama3"] = Architecture("llama3", SIZES, {"rope_theta": 1e7, "rope_original_length": 12.0})
LAYOUTS_OF = {
    2: ("tp2", "tp2-sp", "pp2", "dp2"),
    4: ("tp2-pp2", "tp2-pp2-sp"),
}
IN = {"qwen3_tied": ("tp2-pp2",), "llama3": ("tp2", "tp2-pp2")}
"""The layouts of what differs in some only."""


def _each(cases: list[tuple[Architecture, dict[str, Any]]], steps: int) -> Any:
    """For each architecture and layout: see ranks.initial_and_trained."""
    return [ranks.initial_and_trained(arch, how, "fp32", "none", steps) for arch, how in cases]


def _kernels(arch: Architecture, how: dict[str, Any], steps: int) -> Any:
    """The losses with kernels."""
    engine = ranks.engine_for(arch, how, Numerics(compile=True))
    ranks.begin(engine)
    return ranks.train(engine, ranks.batches(arch, steps))


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """Five steps in one process: {family: (values before, losses, values after)}."""
    (found,) = run(1, _each, [(arch, {}) for arch in ARCHITECTURES.values()], 5)
    return {
        name: (assemble(arch, [before]), losses, assemble(arch, [after]))
        for (name, arch), (before, losses, after) in zip(ARCHITECTURES.items(), found, strict=True)
    }


@pytest.mark.parametrize("world", LAYOUTS_OF)
def test_agrees_with_one_process(world: int, one_process: dict[str, Any]) -> None:
    """Bitwise the same initial tensors; losses and gradient norms of five clipped steps to fp32 rounding."""
    cases = [(name, how) for name in ARCHITECTURES for how in LAYOUTS_OF[world] if how in IN.get(name, LAYOUTS)]
    found = run(world, _each, [(ARCHITECTURES[name], LAYOUTS[how]) for name, how in cases], 5)
    for case, each in zip(cases, zip(*found, strict=True), strict=True):
        before, losses, after = one_process[case[0]]
        arch = ARCHITECTURES[case[0]]
        same(assemble(arch, [rank[0] for rank in each]), before)
        for _, theirs, _ in each:
            np.testing.assert_allclose(theirs, losses, rtol=1e-5, err_msg=str(case))
        for key, value in assemble(arch, [rank[2] for rank in each]).items():
            # Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
            atol = 2e-3 if key[0] == "weight" else 1e-5
            np.testing.assert_allclose(value, after[key], atol=atol, err_msg=f"{case} {key}")


def test_kernels_agree(one_process: dict[str, Any]) -> None:
    """The compiled model is the other one, under tensor parallelism too."""
    for losses in run(2, _kernels, ARCHITECTURES["qwen3"], LAYOUTS["tp2-sp"], 5):
        np.testing.assert_allclose(losses, one_process["qwen3"][1], rtol=1e-5)


def test_growth_commutes_with_sharding(tmp_path: Path) -> None:
    """Wider, deeper, with wider heads, from TP2 x PP2 into TP2 with sequence parallelism."""
    arch, how = ARCHITECTURES["qwen3"], LAYOUTS["tp2-pp2"]
    run(4, ranks.trained_and_saved, arch, how, 3, str(tmp_path))
    new = arch.replace({"hidden": 48, "layers": 5, "heads": 8, "kv_heads": 4, "head_dim": 24, "ffn": 80})
    plan = growth.between(arch, new, ranks.POLICY, seed=11, init_std=0.05)
    with Reader(tmp_path / "step-00000000") as reader:
        whole = {
            (kind, tensor): plan.evaluate(tensor, Box.whole(shape.shape), reader.read, kind).numpy()
            for kind in KINDS
            for tensor, shape in plan.new.tensors().items()
        }
    found = run(2, ranks.grown, new, LAYOUTS["tp2-sp"], str(tmp_path / "step-00000000"), 2, ranks.POLICY)
    same(assemble(plan.new, [r[0] for r in found]), whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_engine_computes_the_reference_model(name: str) -> None:
    """Logits after five steps at TP2 x PP2; those of the reference model are transformers'."""
    arch = ARCHITECTURES[name]
    found = run(4, ranks.trained_logits, arch, LAYOUTS["tp2-pp2"], 5)
    values = assemble(arch, [r[0] for r in found])
    ids = ranks.batches(arch, 1)[0]["inputs"]
    ours = next(r[1] for r in found if r[1] is not None)

    def read(kind: str, tensor: str, box: Box) -> torch.Tensor:
        return torch.from_numpy(values[kind, tensor][box.slices()])

    theirs = reference.logits(read, arch, ids).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
