"""What status.sh says of a run, from its folder and the queue."""

import json
import time
from pathlib import Path

import pytest

from pretrain.cli import status
from tests.unit.small import small_curriculum


def test_a_run_in_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curriculum = small_curriculum(tmp_path)
    seed, wide = curriculum.stages
    assert status.status_of(curriculum, seed, {}) == status.Status("seed", "new", target=1_000_000)

    folder = tmp_path / "runs/small/seed"
    (folder / "checkpoints").mkdir(parents=True)
    lines = [
        {"step": 0, "tokens": 5000, "flops": 0.0, "seconds": 0.0, "validation_loss": 7.0},
        {"step": 10, "tokens": 205_000, "flops": 1e12, "seconds": 60.0, "loss": 6.5, "tokens_per_second": 100.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 11, "tok')  # a kill in the middle of a line
    start = "2026-01-01T00:00:00Z\t7\t{}\tnode1\tstart\n"
    (folder / "jobs.tsv").write_text(
        start.format(0) + start.format(1).replace("start", "x; requeued") + start.format(1)
    )
    (folder / "heartbeat").write_text(json.dumps({"step": 10, "time": time.time() - 600}))
    found = status.status_of(curriculum, seed, {})
    assert (found.state, found.step, found.tokens, found.loss, found.restarts) == ("not queued", 10, 200_000, 6.5, 1)
    assert found.seconds == 8000
    assert found.silent is None

    queue = [
        f"{folder}|7|RUNNING|None\n",
        f"{folder.with_name('wide')}|8|PENDING|Dependency\n",
        "(null)|9|RUNNING|None\n",
    ]
    jobs = status.read_queue(queue)
    running, waiting = (status.status_of(curriculum, stage, jobs) for stage in (seed, wide))
    assert (running.state, running.job) == ("running", "7")
    assert running.silent == pytest.approx(600, abs=60)
    assert (waiting.state, waiting.job) == ("pending (Dependency)", "8")
    said = status.table([running, waiting]).splitlines()
    assert said[1].split("  ")[0] == "seed"
    assert "running, silent for 10 min" in said[1]
    assert "2e+05 of 1e+06" in said[1]
    assert "2 h 13 min" in said[1]

    (folder / "STOPPED").touch()
    assert status.status_of(curriculum, seed, {}).state == "stopped by STOP"
    (folder / "DONE").write_text("{}")
    done = status.status_of(curriculum, seed, {})
    assert (done.state, done.seconds) == ("done", 0)
