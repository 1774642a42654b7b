"""What a start took, kept once, and nothing left out between the birth of the process and its first step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch.distributed as dist
from pretrain.runtime import startup

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for part in ("imports", "engine", "imports"):
    startup.through(part)
for step in (7, 8):
    startup.finish(Path(sys.argv[1]), step)
startup.through("engine")
"""


def test_the_parts_of_a_start_add_up(tmp_path: Path) -> None:
    before = time.time()
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], check=True)
    (start,) = map(json.loads, (tmp_path / "starts.jsonl").read_text().splitlines())
    assert start["step"] == 7
    assert list(start["parts"]) == ["imports", "engine", "first step"]
    assert sum(start["parts"].values()) == pytest.approx(start["seconds"])
    # The kernel counts the birth of a process in hundredths of a second.
    assert before - 0.02 <= start["time"] - start["seconds"] <= start["time"] <= time.time()
