"""Imports, for the server that the ranks of tests are forked from, whatever ranks import sooner or later: a rank that
imports itself what PyTorch, Megatron-core, DeepSpeed and numba leave for later takes ten times as long to begin as to
work."""

import gc
import importlib

import pretrain.engine  # noqa: F401  # first, as its docstring says
from pretrain.families import FAMILIES

LATER = [
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "growth.random.normals",
    "hypothesis",
    "megatron.core.transformer.multi_token_prediction",
    "numpy.ma",
    "pretrain.stage.train",
    "pytest",
    "tests.distributed.ranks",
    "torch._dynamo",
    "torch._inductor",
]

for name in LATER:
    importlib.import_module(name)
for family in FAMILIES.values():
    assert family.model
    assert family.text
gc.freeze()  # a collection in a rank need not go through all of it, nor copy its pages
