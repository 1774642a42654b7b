"""The all-reduce before a stage: passes on ranks that all come, names the hosts of those that do not."""

import os
import socket
import subprocess
import sys

WORLD = 4


def start(ranks: range, seconds: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(WORLD), "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"CAMBIUM_HOSTS": "first second", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pretrain.preflight", "--megabytes", "1", "--seconds", str(seconds)]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, **how) for rank in ranks]


def test_every_rank_comes() -> None:
    ranks = start(range(WORLD), seconds=200)
    said = [rank.communicate(timeout=250) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * WORLD, said
    assert [out for out, _ in said] == [""] * WORLD
    assert "all-reduce over 4 ranks: 1 MB at " in said[0][1]


def test_the_ranks_of_a_host_do_not_come() -> None:
    first, second = start(range(2), seconds=5)
    out, _ = first.communicate(timeout=250)
    second.kill()
    second.communicate()
    assert first.returncode == 1
    assert out == "bad second its ranks did not come\n"
