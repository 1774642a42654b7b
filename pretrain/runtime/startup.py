"""How long this process took to start, by part: from its birth to the end of its first optimizer step.

After a failure a stage stands still for as long as that. `starts.jsonl` in a stage's folder has a line for each start
that came to a step: time (in seconds since 1970, of that step's end), step, seconds, and what each part of them took.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from pretrain.runtime.ranks import is_first

STARTS = "starts.jsonl"

log = logging.getLogger(__name__)

_parts: dict[str, float] = {}
_last: list[float] = []  # when the last part ended; empty before the first part, which began with the process
_finished: list[bool] = []


def through(part: str) -> None:
    """Notes that the process is through with a part of its start, which may come again. Does nothing after `finish`."""
    if _finished:
        return
    began = _last[0] if _last else _born()
    _last[:] = [time.time()]
    _parts[part] = _parts.get(part, 0.0) + _last[0] - began


def _born() -> float:
    """When this process was made, in seconds since 1970, to a hundredth of one."""
    after_its_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(after_its_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def finish(folder: Path, step: int) -> None:
    """Ends the start with the first optimizer step, the stage's `step`, and says on rank 0 what the start took.

    Later calls do nothing.
    """
    if _finished:
        return
    through("first step")
    _finished.append(True)
    if is_first():
        total = sum(_parts.values())
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in _parts.items())
        log.info("the start took %.1f s: %s", total, parts)
        with (folder / STARTS).open("a", encoding="utf-8") as out:
            print(json.dumps({"time": _last[0], "step": step, "seconds": total, "parts": _parts}), file=out)
