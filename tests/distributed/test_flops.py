"""The FLOPs that are counted from shapes, against what torch counts while the engine's own models run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from growth import Architecture
from pretrain.config import LayerDrop, Model
from pretrain.data.samples import Samples, causal, part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.estimate import flops
from pretrain.layout import Layout
from tests.distributed.harness import run

SEQ_LEN, SAMPLES = 32, 4
COMMON = {"hidden": 64, "layers": 4, "heads": 4, "head_dim": 16, "vocab": 251}
ARCHITECTURES = {
    "llama2": Architecture("llama2", {**COMMON, "kv_heads": 2, "ffn": 192}),
    "gpt2": Architecture("gpt2", {**COMMON, "ffn": 256, "positions": SEQ_LEN}),
    "bert": Architecture("bert", {**COMMON, "ffn": 256, "positions": SEQ_LEN, "types": 2, "labels": 2}),
    "qwen3_tied": Architecture("qwen3_tied", {**COMMON, "kv_heads": 2, "head_dim": 24, "ffn": 192}),
    "convolution_attention": Model(
        251, 64, 4, 256, family="convolution_attention", positions=SEQ_LEN, levels=(1, 1, 1, 1, 1)
    ).architecture(),
}
ops = torch.ops.aten
# torch counts the fused attention of GPUs and not that of CPUs: the same formulas for it.
ON_CPU = {
    ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ops._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}


def samples_of(family: str) -> Samples:
    tokens = torch.randint(0, 251, (SAMPLES, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    found = dict(causal(tokens))
    if family == "bert":
        ones = torch.ones(SAMPLES, SEQ_LEN)
        types = torch.zeros(SAMPLES, SEQ_LEN, dtype=torch.long)
        found |= {"mask": ones, "valid": ones, "types": types, "next_sentence": torch.zeros(SAMPLES, dtype=torch.long)}
    return found


def _part(name: str) -> int | str:
    if "layers." in name:
        return int(name.split("layers.")[1].split(".")[0])
    return "embedding" if "embedding" in name else "head"


def _counted(family: str, how: dict[str, Any], recompute: str, frozen: flops.Frozen) -> tuple[int, int]:
    """FLOPs of a forward pass, and of forward and backward, over this rank's samples."""
    arch = ARCHITECTURES[family]
    layout = Layout.make(arch.layers, **how)
    engine = Engine(arch, layout, Numerics("fp32", recompute), Adam(), seq_len=SEQ_LEN, micro_batch=1)
    for name, parameter in engine.chunks[0].named_parameters():
        parameter.requires_grad_(_part(name) not in frozen)
    samples = part(samples_of(family), engine.dp_rank, layout.dp)
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with counter:
        engine.evaluate(samples)
    forward = counter.get_total_flops()
    with counter:
        engine.backward(samples)
    return forward, counter.get_total_flops()


def _all_families(how: dict[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (family, recompute): _counted(family, how, recompute, ())
        for family in ARCHITECTURES
        for recompute in ("none", "selective", "full")
    }


@pytest.mark.parametrize("how", [{}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}], ids=str)
def test_hardware_flops(how: dict[str, Any]) -> None:
    tp = how.get("tp", 1)
    ranks = run(tp * how.get("pp", 1), _all_families, how)
    for family, recompute in ranks[0]:
        arch = ARCHITECTURES[family]
        forward, step = (sum(rank[family, recompute][i] for rank in ranks) / SAMPLES for i in (0, 1))
        assert flops.forward(arch, SEQ_LEN, tp).total == pytest.approx(forward, rel=1e-2)
        expected = flops.hardware_flops(arch, SEQ_LEN, recompute=recompute, tp=tp) * SEQ_LEN
        assert expected == pytest.approx(step, rel=1e-2), (family, recompute)


FROZEN: list[tuple[str, str, flops.Frozen]] = [
    ("llama2", "none", {1, 3}),
    ("llama2", "none", {0, 1, "embedding"}),
    ("llama2", "none", {0, 2, "embedding", "head"}),
    ("llama2", "selective", {0, "head"}),
    ("gpt2", "none", {0, 1, "embedding"}),
    ("bert", "none", {0, 1, "embedding", "head"}),
    ("bert", "full", {1, 2, "head"}),
    ("qwen3_tied", "none", {0, 1, "embedding"}),
]


def _all_frozen() -> list[tuple[int, int]]:
    return [_counted(family, {}, recompute, frozen) for family, recompute, frozen in FROZEN]


def test_frozen_parts() -> None:
    (found,) = run(1, _all_frozen)
    for (family, recompute, frozen), (_, step) in zip(FROZEN, found, strict=True):
        expected = flops.hardware_flops(ARCHITECTURES[family], SEQ_LEN, recompute=recompute, frozen=frozen)
        assert expected == pytest.approx(step / SAMPLES / SEQ_LEN, rel=1e-2), (family, frozen)


def _left_out() -> list[tuple[int, Any]]:
    """By case of LEFT_OUT: (FLOPs of the passes of a step, in which share of them each block ran)."""
    found = []
    for family, recompute, drop in LEFT_OUT:
        arch = ARCHITECTURES[family]
        numerics = Numerics("fp32", recompute, layer_drop=drop)
        engine = Engine(arch, Layout.make(arch.layers), numerics, Adam(), seq_len=SEQ_LEN, micro_batch=1)
        counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
        with counter:
            engine.backward(samples_of(family), 5)
        found.append((counter.get_total_flops(), engine.ran(SAMPLES, 5)))
    return found


LEFT_OUT = [("llama2", "full", LayerDrop(0.4)), ("bert", "selective", LayerDrop(0.4, sublayers=True))]


def test_what_is_left_out() -> None:
    (found,) = run(1, _left_out)
    for (family, recompute, drop), (step, ran) in zip(LEFT_OUT, found, strict=True):
        assert ran.shape == (4, 1 + drop.sublayers)
        assert 0.2 < ran.mean() < 0.9
        expected = flops.hardware_flops(ARCHITECTURES[family], SEQ_LEN, recompute=recompute, ran=ran)
        assert expected == pytest.approx(step / SAMPLES / SEQ_LEN, rel=1e-2), family
