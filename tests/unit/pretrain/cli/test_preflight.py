"""Before a stage: an all-reduce that names the hosts whose ranks do not come, and a look at each host."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[4] / "slurm/preflight.sh"
WORLD = 4


def start(ranks: range, seconds: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", random.randrange(20_000, 30_000)))  # the kernel gives these to nobody meanwhile
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(WORLD), "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"CAMBIUM_HOSTS": "first second", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pretrain.cli.preflight", "--megabytes", "1", "--seconds", str(seconds)]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, **how) for rank in ranks]


def test_every_rank_comes() -> None:
    ranks = start(range(WORLD), seconds=200)
    said = [rank.communicate(timeout=250) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * WORLD, said
    assert [out for out, _ in said] == [""] * WORLD
    assert "all-reduce over 4 ranks: 1 MB at " in said[0][1]


def test_the_ranks_of_a_host_do_not_come() -> None:
    first, second = start(range(2), seconds=20)
    out, _ = first.communicate(timeout=250)
    second.kill()
    second.communicate()
    assert first.returncode == 1
    assert out == "bad second its ranks did not come\n"


@pytest.mark.parametrize(
    ("gpus", "errors", "changes", "said"),
    [
        (4, "0\n0\n[N/A]\n0", {}, ""),
        (4, "0\n0\n0\n0", {"CAMBIUM_MIN_SHM_GB": "100000"}, "GB free in /dev/shm, and 100000 are wanted"),
        (4, "0\n0\n0\n0", {"CAMBIUM_FOLDER": "/nowhere"}, "there is no folder /nowhere"),
        (3, "0\n0\n0", {}, "3 GPUs, and 4 are wanted"),
        (3, "0\n0\n0", {"CAMBIUM_GPUS": "0"}, ""),
        (4, "0\n2\n0\n0", {}, "1 GPUs with uncorrected ECC errors"),
        (0, "", {}, "0 GPUs, and 4 are wanted"),
    ],
)
def test_a_host(tmp_path: Path, gpus: int, errors: str, changes: dict[str, str], said: str) -> None:
    """What the driver's tool would answer is given; without GPUs there is no such tool."""
    if gpus:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/bash\ncase $1 in *index) seq {gpus} ;; *ecc*) printf '{errors}' ;; esac\n")
        tool.chmod(0o755)
    settings = {"CAMBIUM_GPUS": "1", "CAMBIUM_MIN_SHM_GB": "0", "CAMBIUM_MIN_DISK_GB": "0", "SLURMD_NODENAME": "node7"}
    settings |= {"CAMBIUM_FOLDER": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "--host", "4"]
    done = subprocess.run(
        command, env={**os.environ, **settings, **changes}, capture_output=True, text=True, check=True
    )
    assert done.stdout == ("bad node7\n" if said else "")
    assert said in done.stderr
