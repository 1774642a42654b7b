"""One process against many: the same model, the same loss, the same gradients, whatever the layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growth import Architecture
from pretrain.families.parameters import parameters
from pretrain.layout import fragments
from tests.distributed import ranks
from tests.distributed.harness import run

MHA = Architecture(
    "llama2",
    {"vocab": 64, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 4, "head_dim": 6, "ffn": 32},
    {"norm_eps": 1e-5, "softmax_scale": 6**-0.5, "rope_theta": 1e4},
)
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2},
    "tp2-sp": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2},
    "pp2-uneven": {"pp": 2, "pipeline": "E|tttL"},
    "pp2-interleaved": {"pp": 2, "pipeline": "Et|t|t|L"},
    "dp2": {"dp": 2},
    "dp3": {"dp": 3},
    "tp2-pp2": {"tp": 2, "pp": 2},
    "tp2-pp2-sp": {"tp": 2, "pp": 2, "sequence_parallel": True},
    "tp2-pp2-dp2-even": {"tp": 2, "pp": 2, "dp": 2},
    "tp2-pp2-dp2": {"tp": 2, "pp": 2, "dp": 2, "sequence_parallel": True, "pipeline": [1, 2]},
}


def assemble(arch: Architecture, parts: list[Any]) -> dict[tuple[str, str], np.ndarray]:
    """Full logical tensors from what all ranks would write; every element exactly once."""
    tensors = arch.tensors()
    full = {
        (kind, name): np.full(tensor.shape, np.nan, dtype=np.float32)
        for kind in ("weight", "exp_avg", "exp_avg_sq")
        for name, tensor in tensors.items()
    }
    for rank in parts:
        for kind, name, box, values in rank:
            at = box.slices()
            assert np.isnan(full[kind, name][at]).all(), f"{kind} {name} {box} is written twice"
            full[kind, name][at] = values
    for key, value in full.items():
        assert not np.isnan(value).any(), f"nobody writes all of {key}"
    return full


def world(how: dict[str, Any]) -> int:
    return how.get("tp", 1) * how.get("pp", 1) * how.get("dp", 1)


@pytest.fixture(scope="module")
def one_process() -> Any:
    """The same runs in one process: {(family, precision): (before, losses, after)}."""
    cache: dict[Any, Any] = {}

    def reference(arch: Architecture, precision: str, recompute: str = "none") -> Any:
        key = (arch, precision, recompute)
        if key not in cache:
            ((before, losses, after),) = run(1, ranks.initial_and_trained, arch, {}, precision, recompute, 5)
            cache[key] = assemble(arch, [before]), losses, assemble(arch, [after])
        return cache[key]

    return reference


@pytest.mark.parametrize("name", LAYOUTS)
def test_agrees_with_one_process(name: str, one_process: Any) -> None:
    """Bitwise the same initial tensors; losses and gradient norms of five clipped steps to fp32 rounding."""
    how, arch = LAYOUTS[name], ranks.GQA
    found = run(world(how), ranks.initial_and_trained, arch, how, "fp32", "none", 5)
    before, losses, after = one_process(arch, "fp32")
    for key, value in assemble(arch, [r[0] for r in found]).items():
        assert np.array_equal(value, before[key]), key
    for _, theirs, _ in found:
        np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    for key, value in assemble(arch, [r[2] for r in found]).items():
        # Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
        np.testing.assert_allclose(value, after[key], atol=2e-3 if key[0] == "weight" else 1e-5, err_msg=str(key))


@pytest.mark.parametrize(("arch", "precision", "recompute"), [(MHA, "fp32", "full"), (MHA, "bf16", "selective")])
def test_precision_and_recomputation(arch: Architecture, precision: str, recompute: str, one_process: Any) -> None:
    """Recomputation changes nothing in one process; bf16 with fp32 accumulation agrees across layouts to bf16."""
    how = LAYOUTS["tp2-pp2"]
    _, losses, _ = one_process(arch, precision)
    _, again, _ = one_process(arch, precision, recompute)
    assert again == losses
    found = run(world(how), ranks.initial_and_trained, arch, how, precision, recompute, 5)
    np.testing.assert_allclose(found[0][1], losses, rtol=1e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("name", ["dp3", "pp2-interleaved", "tp2-pp2-dp2"])
def test_arithmetic_describes_what_was_built(name: str) -> None:
    """Names, fragments and tensor-parallel marks of the real model are those of the pure arithmetic."""
    how, arch = LAYOUTS[name], ranks.GQA
    layout = ranks.layout(arch, how)
    for rank, names, mapped, marked in run(world(how), ranks.geometry, arch, how):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(arch, layout, pp_rank, tp_rank)
        assert names == [p.name for p in table]
        assert marked == [p.dim is not None for p in table]
        assert mapped == [(f.index, f.start, f.numel, f.offset) for f in fragments(table, layout.dp, dp_rank)]
