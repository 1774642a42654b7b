"""The engine of a stage."""

from __future__ import annotations

from growth import Architecture
from pretrain.config import Train
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.layout import Layout
from pretrain.runtime import startup


def engine_of(arch: Architecture, layout: Layout, train: Train) -> Engine:
    """An engine that trains a model as a stage says, without values (collective)."""
    startup.through("looking for checkpoints")
    engine = Engine(
        arch,
        layout,
        Numerics(
            train.precision,
            train.recompute,
            train.recompute_layers,
            train.compile,
            train.dropout,
            train.attention_dropout,
            train.layer_drop,
            train.lora.dropout,
        ),
        Adam(train.betas, train.eps, train.weight_decay, train.clip, train.mup.base()),
        seq_len=train.seq_len,
        micro_batch=train.micro_batch,
        averages=bool(train.average.half_life),
        memory=train.memory,
    )
    startup.through("engine")
    return engine
