"""Checkpoints as Megatron-LM's ranks write them, made of drawn tensors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from growth import Architecture
from pretrain import families
from pretrain.families.parameters import parameters
from pretrain.layout import Layout

SIZES = {"vocab": 24, "hidden": 8, "layers": 3, "heads": 4, "head_dim": 2, "ffn": 12}
LLAMA2 = Architecture("llama2", {**SIZES, "kv_heads": 2})
QWEN2 = Architecture("qwen2", {**SIZES, "kv_heads": 2})
QWEN3 = Architecture("qwen3", {**SIZES, "kv_heads": 2}, {"rope_theta": 5e5})
TIED = Architecture("qwen3_tied", {**SIZES, "kv_heads": 4})
GPT2 = Architecture("gpt2", {**SIZES, "positions": 6})
Values = dict[tuple[str, str], torch.Tensor]
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def drawn(arch: Architecture) -> Values:
    """A value for every element of the weights and the moments."""
    draw = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in arch.tensors().items()}
    return {(kind, name): torch.randn(shape, generator=draw) for kind in KINDS for name, shape in shapes.items()}


def arguments(arch: Architecture, layout: Layout) -> dict[str, Any]:
    form = families.of(arch.family).megatron
    assert form is not None
    sizes = {"tensor_model_parallel_size": layout.tp, "pipeline_model_parallel_size": layout.pp}
    return {**form.arguments(arch), **sizes}


def local(arch: Architecture, layout: Layout, pp_rank: int, tp_rank: int, values: Values, kind: str) -> dict[str, Any]:
    """The parameters of a rank, as Megatron-core names them, with the number of the chunk before each."""
    here = {}
    for parameter in parameters(arch, layout, pp_rank, tp_rank):
        here[parameter.name] = torch.zeros(parameter.shape)
        for piece in parameter.pieces:
            here[parameter.name][piece.local.slices()] = values[kind, piece.tensor][piece.box.slices()]
    return here


def save_ranks(
    folder: Path,
    arch: Architecture,
    layout: Layout,
    values: Values,
    named: Callable[[dict[str, Any]], Any] = lambda model: model,
    **changed: Any,
) -> Path:
    """An iteration of a run in fp32. named: the state dict of a model, from Megatron-core's. changed: arguments."""
    args = argparse.Namespace(**{**arguments(arch, layout), **changed})
    for pp_rank in range(layout.pp):
        for tp_rank in range(layout.tp):
            of = {kind: local(arch, layout, pp_rank, tp_rank, values, kind) for kind in KINDS}
            chunks = sorted({name.split(".")[0] for name in of["weight"]})
            models = {
                chunk: named({k.partition(".")[2]: v for k, v in of["weight"].items() if k.startswith(f"{chunk}.")})
                for chunk in chunks
            }
            names = list(of["weight"])
            groups = [[n for n in names if (of["weight"][n].dim() > 1) == matrix] for matrix in (True, False)]
            ids = {name: number for number, name in enumerate(groups[0] + groups[1])}
            optimizer = {
                "state": {ids[name]: {kind: of[kind][name] for kind in KINDS[1:]} for name in names},
                "param_groups": [
                    {"params": [ids[name] for name in group], "wd_mult": decay, "step": 7, "lr": 1e-3}
                    for group, decay in zip(groups, (1.0, 0.0), strict=True)
                ],
            }
            place = folder / (f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if layout.pp > 1 else ""))
            place.mkdir(parents=True)
            state = {"args": args, "checkpoint_version": 3.0, "iteration": 9, "optimizer": optimizer}
            state |= (
                {f"model{i}": models[c] for i, c in enumerate(chunks)} if len(chunks) > 1 else {"model": models["0"]}
            )
            torch.save(state, place / "model_optim_rng.pt")
    return folder


def legacy(model: dict[str, Any]) -> dict[str, Any]:
    """The state dict of Megatron-LM's models before Megatron-core: one dict in another, and other names."""
    words = (
        (r"decoder\.layers\.(\d+)\.pre_mlp_layernorm", r"encoder.layers.\1.post_attention_norm"),
        (r"input_layernorm", "input_norm"),
        (r"linear_qkv", "query_key_value"),
        (r"linear_proj", "dense"),
        (r"linear_fc1", "dense_h_to_4h"),
        (r"linear_fc2", "dense_4h_to_h"),
        (r"final_layernorm", "final_norm"),
        (r"decoder\.", "encoder."),
    )
    state: dict[str, Any] = {}
    for name, value in model.items():
        for pattern, word in words:
            name = re.sub(pattern, word, name)
        part, _, rest = name.partition(".")
        state.setdefault(part, {})[rest] = value
    if "output_layer" in state and "embedding" not in state and len(state) == 2:  # the head's copy of a tied embedding
        return {"language_model": {"encoder": state["encoder"]}, "word_embeddings_for_head": state["output_layer"]}
    return {"language_model": state}
