"""What a dry run finds on one rank, and where."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = ("megatron", "deepspeed")
"""Whose lines are named beside those of the project: they are reached because of what it asks of them."""
NOT_NAMED = tuple(ROOT / path for path in ("pretrain/dryrun", "pretrain/kernels/fused.py"))
"""What is on the way to every line, and says nothing about it."""

Place = tuple[str, ...]
"""Lines of code as "file:line function", the innermost first."""


@dataclass(frozen=True)
class Finding:
    """kind is "error", "wait" (the host waits for the device) or "slow"; phase: in which pass."""

    kind: str
    what: str
    where: Place
    phase: str
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.what}{times}, at {' < '.join(self.where) or 'an unknown place'} [{self.phase}]"


class Findings:
    """Those of this process, equal ones counted; in which pass it is."""

    def __init__(self) -> None:
        self._found: dict[Finding, int] = {}
        self.phase = ""

    def add(self, kind: str, what: str) -> None:
        """Note something about the line that runs now. A wait in another thread than the main one delays nobody."""
        if kind == "wait" and threading.current_thread() is not threading.main_thread():
            return
        self._add(Finding(kind, what, here(), self.phase))

    def failed(self, error: BaseException) -> None:
        """Note an exception that ended a pass, with the line that raised it."""
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        lines = [line_no for _, line_no in traceback.walk_tb(error.__traceback__)]
        places = [
            _line(f, n) for f, n in zip(reversed(frames), reversed(lines), strict=True) if _short(f.f_code.co_filename)
        ]
        words = " ".join(str(error).split())
        self._add(Finding("error", f"{type(error).__name__}: {words[:400]}", tuple(places[:4]), self.phase))

    def _add(self, finding: Finding) -> None:
        self._found[finding] = self._found.get(finding, 0) + 1

    def __iter__(self) -> Iterator[Finding]:
        return (replace(finding, count=n) for finding, n in self._found.items())

    def clear(self) -> None:
        self._found.clear()
        self.phase = ""


FINDINGS = Findings()


def here(depth: int = 3) -> Place:
    """The innermost lines of the project, of Megatron-core and of DeepSpeed that run now."""
    frame: FrameType | None = sys._getframe(1)
    places: list[str] = []
    while frame is not None and len(places) < depth:
        if _short(frame.f_code.co_filename):
            places.append(_line(frame, frame.f_lineno))
        frame = frame.f_back
    return tuple(places)


def _line(frame: FrameType, number: int) -> str:
    code: Any = frame.f_code
    return f"{_short(code.co_filename)}:{number} {getattr(code, 'co_qualname', code.co_name).replace('.<locals>', '')}"


@cache
def _short(filename: str) -> str:
    """The name of a file as it is shown, empty for those that are not."""
    packages = filename.rpartition("/site-packages/")[2]
    if packages != filename:
        return packages if packages.startswith(LIBRARIES) else ""
    path = Path(filename)
    if not path.is_relative_to(ROOT) or any(path.is_relative_to(other) for other in NOT_NAMED):
        return ""
    return str(path.relative_to(ROOT))
