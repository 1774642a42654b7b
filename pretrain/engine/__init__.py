"""The training engine: Megatron-core's model and schedules, DeepSpeed's ZeRO-1 and the optimizer of generations.

Importing this first spares a process a fifth of its start: Megatron-core hands functions of its own, which no model
here calls, to torch.compile while it is imported, and that loads the whole compiler.
"""

import importlib

import torch

_compile = torch.compile
torch.compile = lambda model=None, **_: model or (lambda function: function)  # type: ignore[assignment]
try:
    importlib.import_module("megatron.core")
finally:
    torch.compile = _compile
