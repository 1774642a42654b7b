"""What the kernels of a step must at least move and compute, and the kernels of CUDA that a CPU build does not have.

A CPU build decomposes RMSNorm, attention and the backward pass of silu into many operations; on CUDA each is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from pretrain.dryrun.device import put
from pretrain.dryrun.findings import FINDINGS
from pretrain.dryrun.memory import MEMORY
from pretrain.kernels import fused

if TYPE_CHECKING:
    from pretrain.kernels.fused import Kernel as Fused

aten = torch.ops.aten
FREE = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach", "alias"),
    *("lift_fresh", "split", "unbind", "_reshape_alias", "record_stream", "set_"),
)
"""Operations that launch no kernel, though their schema does not say that they are views."""
ATTENTION = "_scaled_dot_product"


@dataclass
class Kernel:
    """All launches of one: bytes that must be read or written, floating-point operations of matrix products."""

    calls: int = 0
    bytes: int = 0
    flops: int = 0


class Kernels:
    """Those that ran since `clear`, by name. While `inside` is not zero they are parts of a fused one."""

    def __init__(self) -> None:
        self.by_name: dict[str, Kernel] = {}
        self.inside = 0

    def add(self, name: str, size: int, flops: int = 0) -> None:
        if not self.inside:
            kernel = self.by_name.setdefault(name, Kernel())
            kernel.calls, kernel.bytes, kernel.flops = kernel.calls + 1, kernel.bytes + size, kernel.flops + flops

    def see(self, func: Any, given: Sequence[Any], made: Sequence[Any]) -> None:
        """Count an operation by its tensors on the device; given and made are flat."""
        name = func._schema.name.removeprefix("aten::")
        if self.inside or func.is_view or name.startswith("prim") or name in FREE:
            return
        inputs = list({id(t): t for t in given if on_device(t)}.values())
        outputs = [t for t in made if on_device(t)]
        if not inputs and not outputs:
            return
        size, flops = sum(map(moved, inputs)) + sum(map(moved, outputs)), 0
        if name in ("mm", "addmm", "bmm"):
            a, b = inputs[-2:]
            flops = 2 * a.numel() * b.shape[-1]
        elif name.startswith(ATTENTION):
            backward = "backward" in name
            q, k = inputs[backward : backward + 2]
            causal = next(x for x in reversed(given) if isinstance(x, bool))
            flops = 4 * q.numel() * k.shape[2] // (2 if causal else 1)
            flops = flops * 5 // 2 if backward else flops
        elif name in ("embedding", "index"):
            size = 2 * sum(map(moved, outputs))
        elif name == "copy_":
            size = sum(map(moved, inputs[:2]))
        elif name in ("zero_", "fill_"):
            size = moved(inputs[0])
        elif name.startswith("_fused_adamw"):
            size = size * 7 // 4  # weights and moments are written too
        self.add(f"{name} {str((outputs or inputs)[0].dtype).removeprefix('torch.')}", size, flops)

    def clear(self) -> None:
        self.by_name = {}


KERNELS = Kernels()


def on_device(value: Any) -> bool:
    """Whether this is a tensor on the device."""
    return isinstance(value, FakeTensor) and value.device.type == "cuda"


def moved(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; of an expanded one those that there are."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one over its root mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, torch.empty((*x.shape[:-1], 1), device=x.device, dtype=torch.float32))
        KERNELS.add("rms_norm", 2 * moved(x))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        KERNELS.add("rms_norm backward", 5 * moved(x))  # and the weight's gradient goes over two of them again
        return torch.empty_like(x), torch.empty_like(weight)


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        KERNELS.add("silu", 2 * moved(x))
        return torch.empty(x.shape, device=x.device, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        KERNELS.add("silu backward", 3 * moved(gradients[0]))
        return torch.empty_like(gradients[0])


def install() -> None:
    """Let torch take the kernels of CUDA for tensors on the device. After `collectives.install`."""

    rms_norm, silu, attention = F.rms_norm, F.silu, F.scaled_dot_product_attention

    def norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if not on_device(x) or weight is None or weight.dtype != x.dtype:
            return rms_norm(x, shape, weight, eps)
        _same_device(x, weight)
        return _RMSNorm.apply(x, weight)

    def gate(x: Tensor, inplace: bool = False) -> Tensor:
        return _Silu.apply(x) if on_device(x) else silu(x, inplace)

    def attend(q: Tensor, k: Tensor, v: Tensor, *given: Any, **named: Any) -> Tensor:
        return _attention(q, k, v, *given, **named) if on_device(q) else attention(q, k, v, *given, **named)

    put(F, rms_norm=norm, silu=gate, scaled_dot_product_attention=attend)
    put(fused, observer=_fused)


def _fused(kernel: Fused, args: Sequence[Any]) -> Any:
    """A fused kernel: what it makes is there, and nothing of what its operations would have made on the way."""
    KERNELS.inside += 1
    with MEMORY.paused():
        made = kernel.eager(*args)
    KERNELS.inside -= 1
    for tensor in filter(on_device, tree_leaves(made)):
        MEMORY.see(tensor)
    KERNELS.add(f"{kernel.name} (fused)", kernel.bytes_moved(args, made))
    return made


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention where CUDA has it (16 bits, no mask, heads of at most 256), else memory-efficient attention."""
    _same_device(q, k, v)
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention of {q.dtype}, {k.dtype} and {v.dtype}")
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        FINDINGS.add("slow", "attention copies a tensor whose heads are not contiguous")
    if attn_mask is None and q.element_size() == 2 and q.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
    FINDINGS.add("slow", f"attention is not flash: {q.dtype}, {'a mask' if attn_mask is not None else 'no mask'}")
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if attn_mask is not None:
        _same_device(q, attn_mask)
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _same_device(*tensors: Tensor) -> None:
    if not all(on_device(t) for t in tensors):
        raise RuntimeError(f"one kernel of tensors on {', '.join(str(t.device) for t in tensors)}")
