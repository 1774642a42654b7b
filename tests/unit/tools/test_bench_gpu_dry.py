"""The benchmark of a GPU, at full size, on a device that is not there: its lines for CUDA, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.dryrun import guard

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, os, torch
from pretrain.dryrun import serve
serve.prepare()
from pretrain.dryrun import tensors
from pretrain.dryrun.collectives import join
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
torch.cuda.set_sync_debug_mode = lambda *_: None
with tensors.Device():
    join(0, 1)
    from benchmarks.gpu import worker
    from benchmarks.gpu.cases import Case
    worker.STEPS = 1
    large = Case("train", 1, "125M", tokens=1, compiled=False)
    for case in (Case("ceilings", 1, tiny=True), large, Case("event", 1, "350M", tiny=True)):
        for row in worker.MEASURED[case.kind](case):
            print(json.dumps({"kind": case.kind, **row}), flush=True)
"""


@pytest.mark.long
@pytest.mark.skipif(not guard.available(), reason="NOT TESTED: no g++")
def test_at_full_size() -> None:
    library = str(guard.built())
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LD_PRELOAD": library, guard.VARIABLE: library, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["kind"] for row in rows} == {"ceilings", "train", "event"}
    (trained,) = (row for row in rows if row["kind"] == "train")
    assert trained["micro_batch"] == 8
    assert 0.6 * trained["plan_gib"] < trained["peak_gib"] < 1.05 * trained["plan_gib"]
    assert trained["mfu"] > 0  # of an A100, by its name
