"""A PipelineModule with the parts and the names of Megatron-DeepSpeed's GPTModelPipe; see harness.run.

What it computes is no language model: it is for its parameters, which DeepSpeed trains, cuts and saves.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growth import Architecture
from pretrain.layout import Layout
from pretrain.megatron_lm.zero import NUMBERED
from tests.distributed.megatron_lm import BETAS, arguments

STEPS = 2


class Embedding(nn.Module):
    def __init__(self, vocab: int, positions: int, hidden: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden)
        self.position_embeddings = nn.Embedding(positions, hidden)

    @property
    def word_embeddings_weight(self) -> Tensor:
        return self.word_embeddings.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.word_embeddings(tokens) + self.position_embeddings.weight[: tokens.shape[1]]


class Layer(nn.Module):
    self_attention: Any
    mlp: Any

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(hidden)
        self.self_attention = nn.Module()
        self.self_attention.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.self_attention.dense = nn.Linear(hidden, hidden)
        self.post_attention_layernorm = nn.LayerNorm(hidden)
        self.mlp = nn.Module()
        self.mlp.dense_h_to_4h = nn.Linear(hidden, ffn)
        self.mlp.dense_4h_to_h = nn.Linear(ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.self_attention.query_key_value(self.input_layernorm(x)).chunk(3, -1)
        x = x + self.self_attention.dense(mixed[0] * mixed[1].sigmoid() + mixed[2])
        return x + self.mlp.dense_4h_to_h(self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)).relu())


def _turned(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()


def _logits(embedding: Embedding, x: Tensor) -> Tensor:
    return x @ embedding.word_embeddings_weight.T


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def trained_and_saved(arch: Architecture, stages: int, root: str) -> dict[str, tuple[Any, Any, Any]]:
    """After some steps, of each parameter of this rank under the name of a whole model: master and moments, as
    DeepSpeed itself puts them together."""
    import deepspeed
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from pretrain.engine.zero import Zero

    assert Zero  # its module has told DeepSpeed that there is no CUDA
    deepspeed.init_distributed("gloo")
    s = arch.sizes
    embedding = (Embedding, s["vocab"], s["positions"], s["hidden"])
    specs = [
        _turned,
        TiedLayerSpec("embed", *embedding, tied_weight_attr="word_embeddings_weight"),
        _turned,
        *(LayerSpec(Layer, s["hidden"], s["ffn"]) for _ in range(s["layers"])),
        _turned,
        LayerSpec(nn.LayerNorm, s["hidden"]),
        TiedLayerSpec("embed", *embedding, forward_fn=_logits, tied_weight_attr="word_embeddings_weight"),
    ]
    torch.manual_seed(1 + dist.get_rank() // (dist.get_world_size() // stages))
    model = PipelineModule(specs, num_stages=stages, loss_fn=_loss, partition_method="uniform")
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == matrix]} for matrix in (True, False)]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1, "overlap_comm": False},
        "steps_per_print": 2**62,
    }
    adam = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, betas=BETAS)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config, dist_init_required=False)
    draw = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        tokens = torch.randint(0, s["vocab"], (4, 2, s["positions"]), generator=draw)
        engine.train_batch(iter([(each.T.contiguous(), each) for each in tokens]))
    args = argparse.Namespace(**arguments(arch, Layout.make(s["layers"])))
    engine.save_checkpoint(root, client_state={"args": args, "iteration": STEPS, "checkpoint_version": 3.0})
    values = {}
    zero = engine.optimizer
    for flat, members in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        for p in members:  # which DeepSpeed 0.19 does for the first of two groups alone
            if p._hp_mapping:
                p._hp_mapping.set_optim_state_fragment(flat, zero.optimizer.state[flat])
    for name, p in model.named_parameters():
        match = NUMBERED.fullmatch(name)
        states = [safe_get_full_optimizer_state(p, kind) for kind in ("exp_avg", "exp_avg_sq")]
        whole = [safe_get_full_fp32_param(p), *states]
        key = f"{int(match[1]) - 3}.{match[2]}" if match else name
        values[key] = tuple(x.detach().clone().view(p.shape).numpy() for x in whole)
    return values
