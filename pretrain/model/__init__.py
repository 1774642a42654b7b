"""Models on Megatron-core: one builder per family, and what they share.

Importing this first spares a process a fifth of its start: Megatron-core hands functions of its own, which no model
here calls, to torch.compile while it is imported, and that loads the whole compiler.
"""

import torch

_compile = torch.compile
torch.compile = lambda model=None, **_: model or (lambda function: function)  # type: ignore[assignment]
try:
    import megatron.core  # noqa: F401
finally:
    torch.compile = _compile
