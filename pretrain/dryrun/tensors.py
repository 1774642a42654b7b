"""Tensors on the device that is not there: what is done with them gives shapes, types and strides, and no values.

Tensors on the CPU are real. What crosses from one to the other is noted where the host has to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from pretrain.dryrun.device import nothing, put
from pretrain.dryrun.findings import FINDINGS
from pretrain.dryrun.kernels import KERNELS, on_device
from pretrain.dryrun.memory import MEMORY

aten = torch.ops.aten
SMALL = 1 << 16
"""Elements up to which a copy from the device holds ones; larger ones hold zeros, which take no memory."""


def install() -> None:
    """Let fake tensors live on a device that no driver knows."""
    put(FakeTensorMode, avoid_device_init=property(lambda _: True))
    put(fake_tensor, init_gpu_context=nothing)
    put(FakeTensor, tolist=lambda tensor: tensor.cpu().tolist())  # one copy, as on CUDA
    torch._C._set_only_lift_cpu_tensors(True)
    torch.autograd.set_multithreading_enabled(False)
    put(torch.nn.Module, _apply=_apply)


class Device(TorchDispatchMode):
    """Inside it, what is done with tensors on "cuda" is done by the device that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._pinned: WeakSet[Any] = WeakSet()
        self._special: Mapping[Any, Callable[..., Any]] = {
            aten._local_scalar_dense.default: self._item,
            aten._to_copy.default: self._to_copy,
            aten.copy_.default: self._copy,
            aten.record_stream.default: nothing,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        device = any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in flat)
        if not device or func in (aten.is_pinned.default, aten._pin_memory.default):
            return self._on_host(func, args, kwargs)
        if func in self._special:
            output = self._special[func](*args, **kwargs)
            if output is not NotImplemented:
                return output
        with self._fake:
            out = func(*args, **kwargs)
        made = tree_leaves(out)
        for tensor in made:
            if on_device(tensor):
                MEMORY.see(tensor)
        KERNELS.see(func, flat, made)
        return out

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Real memory; whether it is pinned is remembered."""
        if func is aten.is_pinned.default:
            return args[0].untyped_storage() in self._pinned
        if func is aten._pin_memory.default:
            return self._pin(args[0].clone())
        pinned = kwargs.get("pin_memory", False)
        output = func(*args, **{**kwargs, "pin_memory": False} if pinned else kwargs)
        return self._pin(output) if pinned else output

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(tensor.untyped_storage())
        return tensor

    def _item(self, tensor: Tensor) -> Any:
        if not on_device(tensor):
            return NotImplemented
        FINDINGS.add("wait", "the host asks for a value on the device (item, bool, int or float)")
        return False if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1

    def _to_copy(self, source: Tensor, **how: Any) -> Any:
        to = how.get("device")
        if to is None or to.type == source.device.type:
            return NotImplemented
        if to.type == "cpu":  # always into pageable memory, which a copy waits for
            FINDINGS.add("wait", f"a copy from the device of {_size(source)}")
            return _value(torch.empty(0, dtype=how.get("dtype") or source.dtype), source.shape)
        self._onto(source, how.get("non_blocking", False))
        return NotImplemented

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
        if to.device.type == source.device.type:
            return NotImplemented
        torch.broadcast_shapes(to.shape, source.shape)
        if to.device.type == "cpu":
            if not (non_blocking and to.untyped_storage() in self._pinned):
                FINDINGS.add("wait", f"a copy from the device of {_size(source)}")
            if to.numel() <= SMALL:
                to.fill_(1)
            return to
        self._onto(source, non_blocking)
        KERNELS.add("copy from the host", source.numel() * source.element_size())
        return to

    def _onto(self, source: Tensor, non_blocking: bool) -> None:
        """A copy onto the device: one of pageable memory waits until the device has come to it."""
        if source.untyped_storage() not in self._pinned:
            FINDINGS.add("wait", f"a copy of pageable memory to the device, {_size(source)}")
        elif not non_blocking:
            FINDINGS.add("wait", f"a blocking copy of pinned memory to the device, {_size(source)}")


def _size(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _value(like: Tensor, shape: torch.Size) -> Tensor:
    """What a copy from the device holds: ones, so that what is divided by it stays finite."""
    return like.new_ones(shape) if shape.numel() <= SMALL else like.new_zeros(shape)


def _apply(module: torch.nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """Module._apply as it is on a real device, where a parameter that moves stays the same object."""
    for child in module.children() if recurse else ():
        _apply(child, fn)
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            moved = fn(parameter)
        if moved is parameter:
            continue
        if isinstance(parameter, FakeTensor) and isinstance(moved, FakeTensor):
            parameter.data = moved
            continue
        new = getattr(parameter, "_moved", None)  # by another module that has it too
        if new is None:
            new = torch.nn.Parameter(moved, parameter.requires_grad)
            new.__dict__.update({k: v for k, v in parameter.__dict__.items() if k not in new.__dict__})
            parameter._moved = new  # type: ignore[attr-defined]
        module._parameters[key] = new
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = fn(buffer)
    return module
