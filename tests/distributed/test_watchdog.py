"""One rank of a running stage hangs: all ranks write their stacks and end, and the next start goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage, state

ROOT = Path(__file__).parents[2]
RANK = """
import sys, threading
from pretrain.__main__ import main
from pretrain.engine.engine import Engine

train_step, taken = Engine.train_step, iter(range(1, 100))

def step(engine, *args, **named):
    if next(taken) == 7 and engine.dp_rank == 1:
        hang()
    return train_step(engine, *args, **named)

def hang():
    threading.Event().wait()

Engine.train_step = step
sys.exit(main(sys.argv[1:]))
"""


def test_a_rank_that_hangs(corpus: Path, tmp_path: Path) -> None:
    alone, hung = curriculum(corpus, tmp_path / "alone"), curriculum(corpus, tmp_path / "hung")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    words = [str(script), str(hung), "--stage", "small", "--guard.hang", "20"]
    program = f"from pretrain.cli.launch import launch; raise SystemExit(launch(2, {words!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    folder = tmp_path / "hung/run/small"
    stacks = [(folder / f"stacks/rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "in hang" in stacks[1]
    assert "in hang" not in stacks[0]
    assert "all_reduce" in stacks[0], "it waits for the other one"
    for rank, text in enumerate(stacks):
        assert "phase: step, after step 6" in text
        assert f"rank {rank} on " in done.stderr
    told = json.loads((folder / "heartbeat").read_text())
    assert (told["step"], told["phase"]) == (6, "step")
    # The save of step 6 has waited for that of step 3, and may be there too.
    saved = sorted(p.name for p in (folder / "checkpoints").glob("step-*"))
    assert saved in (["step-00000003"], ["step-00000003", "step-00000006"])
    for path in (alone, hung):
        assert run(2, stage, str(path), "small", []) == ["", ""]
    expected = state(tmp_path / "alone/run/small/checkpoints")
    for key, value in state(folder / "checkpoints").items():
        assert np.array_equal(value, expected[key]), key
