"""torch.cuda of a machine that has no CUDA: one A100 that does nothing, and says where the host would wait for it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from pretrain.dryrun.findings import FINDINGS
from pretrain.dryrun.guard import VARIABLE
from pretrain.dryrun.memory import MEMORY

NAME = "NVIDIA A100-SXM4-80GB"
MEMORY_BYTES = 80 << 30


def put(owner: Any, **values: Any) -> None:
    """Replace attributes of a module or class for the rest of this process."""
    for name, value in values.items():
        setattr(owner, name, value)


def waits(what: str) -> Callable[..., None]:
    """A function that does nothing but note that the host waits."""

    def wait(*_: Any, **__: Any) -> None:
        FINDINGS.add("wait", what)

    return wait


def nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


class Context:
    """A context manager that does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Stream(Context):
    """A stream on which everything is done at once."""

    device = torch.device("cuda", 0)
    cuda_stream = 0
    synchronize = staticmethod(waits("Stream.synchronize"))
    wait_stream = wait_event = staticmethod(nothing)

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()


class Event:
    """An event that has happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    record = wait = staticmethod(nothing)
    synchronize = staticmethod(waits("Event.synchronize"))

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        FINDINGS.add("wait", "Event.elapsed_time")
        return 1.0


def install() -> None:
    """Make this process believe in its device. Before anything but torch is imported; see `guard`."""
    ctypes.CDLL(os.environ[VARIABLE]).install()
    stream = Stream()
    state = torch.zeros(16, dtype=torch.uint8)
    cuda = torch.cuda
    put(
        cuda,
        _lazy_init=nothing,
        _lazy_call=lambda call, **_: call(),
        init=nothing,
        is_initialized=lambda: True,
        is_available=lambda: True,
        device_count=lambda: 8,
        current_device=lambda: 0,
        set_device=nothing,
        get_device_name=lambda *_: NAME,
        get_device_capability=lambda *_: (8, 0),
        get_device_properties=lambda *_: SimpleNamespace(
            name=NAME, total_memory=MEMORY_BYTES, major=8, minor=0, multi_processor_count=108
        ),
        is_bf16_supported=lambda *_, **__: True,
        mem_get_info=lambda *_: (MEMORY_BYTES - MEMORY.now, MEMORY_BYTES),
        synchronize=waits("torch.cuda.synchronize"),
        manual_seed=nothing,
        manual_seed_all=nothing,
        get_rng_state=lambda *_, **__: state.clone(),
        set_rng_state=nothing,
        default_generators=(SimpleNamespace(get_state=state.clone, set_state=nothing),),
        empty_cache=nothing,
        Stream=Stream,
        Event=Event,
        current_stream=lambda *_: stream,
        default_stream=lambda *_: stream,
        set_stream=nothing,
        stream=Context,
        device=Context,
    )
    put(cuda.random, get_rng_state=cuda.get_rng_state, set_rng_state=cuda.set_rng_state)
    put(cuda.nvtx, range_push=nothing, range_pop=nothing)
    for what in ("memory_allocated", "memory_reserved", "memory_cached"):
        put(cuda, **{what: lambda *_: MEMORY.now, f"max_{what}": lambda *_: MEMORY.peak})
    put(cuda, reset_peak_memory_stats=nothing, reset_max_memory_allocated=nothing, reset_max_memory_cached=nothing)


def in_every_thread(mode: Callable[[], Any]) -> None:
    """Run every thread that is started from now on inside a context."""
    run = threading.Thread.run

    def inside(thread: threading.Thread) -> None:
        with mode():
            run(thread)

    put(threading.Thread, run=inside)
