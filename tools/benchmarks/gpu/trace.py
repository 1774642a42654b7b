"""What a GPU's time went into, from the trace of torch's profiler."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# In this order: kernels of attention have the names of matrix products in their templates.
KINDS = (
    ("attention", re.compile(r"flash|fmha|attention|mha_|sdpa", re.I)),
    ("communication", re.compile(r"nccl", re.I)),
    ("GEMM", re.compile(r"gemm|cutlass|nvjet|xmma|cublas|gemv|wgmma|splitk|\b(add|b|baddb)?mm\b", re.I)),
)
OTHER = "memory-bound"
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LISTED = 20  # kernels that are named


class Span(NamedTuple):
    """One kernel or copy, in microseconds."""

    name: str
    start: float
    length: float

    @property
    def end(self) -> float:
        return self.start + self.length


def kind(name: str) -> str:
    """GEMM, attention, communication, or memory-bound: whatever else there is moves memory and computes little."""
    return next((kind for kind, pattern in KINDS if pattern.search(name)), OTHER)


def read(path: Path) -> list[Span]:
    """The kernels and copies of a Chrome trace; of a trace without a GPU, its innermost operations."""
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("ph") == "X"]
    spans = [e for e in events if e.get("cat") in DEVICE] or [e for e in events if e.get("cat") == "cpu_op"]
    found = sorted(Span(e["name"], float(e["ts"]), float(e["dur"])) for e in spans)
    if any(e.get("cat") in DEVICE for e in spans):
        return found
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: (span.start, -span.length)):
        if kept and span.start < kept[-1].end:
            if kind(kept[-1].name) != OTHER:
                continue  # a part of it
            kept.pop()
        kept.append(span)
    return kept


def shares(spans: Sequence[Span]) -> dict[str, Any]:
    """Of the time from the first to the last: the share of each kind, and of none; and the longest kernels.

    Kernels that run at the same time count once, for the one that began first.
    """
    begin, end = min(s.start for s in spans), max(s.end for s in spans)
    busy: dict[str, float] = {name: 0.0 for name, _ in KINDS} | {OTHER: 0.0}
    reached = begin
    for span in sorted(spans, key=lambda s: s.start):
        busy[kind(span.name)] += max(0.0, span.end - max(reached, span.start))
        reached = max(reached, span.end)
    whole = end - begin
    kernels: dict[str, list[float]] = {}
    for span in spans:
        kernels.setdefault(span.name, []).append(span.length)
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LISTED]
    return {
        "ms": whole / 1e3,
        "kernels": len(spans),
        "shares": {name: time / whole for name, time in busy.items()} | {"idle": 1 - sum(busy.values()) / whole},
        "longest": [
            {"kernel": name[:160], "kind": kind(name), "calls": len(times), "ms": sum(times) / 1e3}
            for name, times in longest
        ],
    }
