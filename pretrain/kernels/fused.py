"""Operations that are one pass over memory: compiled by torch, or run as they are written.

Most of a step's time outside matrix products goes into moving activations. Where each operation of a formula is a
kernel of its own, every one of them reads and writes whole activations; compiled, a formula reads its inputs once and
writes its outputs once.

A kernel is a small pure function of tensors and plain numbers, written in torch, one for the forward and one for the
backward pass; a torch.autograd.Function puts the two together. Which models use kernels is said when they are built:
see `chosen`.
"""

from __future__ import annotations

import functools
import logging
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pretrain.errors import UserError

log = logging.getLogger(__name__)

SHAPES = 64  # for which a kernel is compiled in one process; torch gives up after 8, which a few growths may need


class Kernel:
    """A function that runs as one pass over its arguments; make one with `kernel`.

    name: the function's. eager: the function itself, as torch runs it, operation by operation. writes: the positions
    of the arguments that it writes in place.
    """

    def __init__(self, function: Callable[..., Any], writes: Sequence[int] = ()) -> None:
        self.name, self.eager, self.writes = function.__name__, function, tuple(writes)
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        # A shape is compiled in: strides that are known to be even make vector loads, and a run has few shapes.
        return torch.compile(self.eager, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        if observer is not None:
            return observer(self, args)
        # Whether an argument asks for a gradient is nothing that should compile it again.
        return self._compiled(*(x.detach() if isinstance(x, Tensor) and x.requires_grad else x for x in args))

    def bytes_moved(self, args: Sequence[Any], outputs: Any) -> int:
        """What one pass reads and writes: each argument and each output once, what is written in place twice."""
        tensors = [x for x in (*args, *(args[i] for i in self.writes), *tree_leaves(outputs)) if isinstance(x, Tensor)]
        return sum(_bytes(x) for x in tensors)


def _bytes(x: Tensor) -> int:
    """Of the elements of a tensor, those of an expanded dimension once."""
    return x.element_size() * functools.reduce(
        lambda n, dim: n * (dim[0] if dim[1] else 1), zip(x.shape, x.stride(), strict=True), 1
    )


observer: Callable[[Kernel, Sequence[Any]], Any] | None = None
"""When set, every call of a kernel comes here in place of being compiled: it is given the kernel and its arguments, and
returns what the kernel would. So a dry run on tensors without values evaluates `kernel.eager(*args)` for the shapes of
the outputs, without taking its temporaries for real, and counts one kernel that moves `kernel.bytes_moved(args,
outputs)`; and a test compares with what torch does operation by operation."""


def kernel(*, writes: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Kernel]:
    """A decorator: makes a function a `Kernel`. writes: the positions of the arguments that it writes in place."""
    return lambda function: Kernel(function, writes)


def chosen(asked: bool | None) -> bool:
    """Whether models are to use kernels: train.compile, and where it says nothing, wherever there is a CUDA device.

    Raises UserError when they are asked for and cannot be compiled here; where they only are the default, a warning
    says so and they are not used.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = device == "cuda" if asked is None else asked
    if not wanted or observer is not None:
        return wanted
    if not (missing := lacking(device)):
        return True
    if asked:
        raise UserError(f"train.compile: true, but nothing can be compiled here: {missing}; or set it to false")
    log.warning("fused kernels are off: %s (train.compile: false says that this is meant)", missing)
    return False


@functools.cache
def lacking(device: str) -> str:
    """What is to be installed before torch can compile for a device; empty: nothing."""
    needs = []
    if device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            needs.append("Triton (`pip install triton`; GPUs from compute capability 7.0 on)")
        if not any(map(shutil.which, ("gcc", "clang", "cc"))):
            needs.append("a C compiler (gcc)")
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception:  # torch has moved its class of this error
            needs.append("a C++ compiler (g++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        needs.append("the headers of Python (python3-dev)")
    return "install " + " and ".join(needs) if needs else ""
