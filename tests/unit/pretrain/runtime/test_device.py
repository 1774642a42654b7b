"""What a rank puts into its environment before CUDA starts, which GPU it takes, and how many cores a job gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.errors import UserError
from pretrain.runtime import device

ROOT = Path(__file__).parents[4]
NAMES = (*device.ALLOCATOR, *device.DETERMINISTIC, "CUDA_DEVICE_MAX_CONNECTIONS")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def found() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_environment() -> None:
    device.prepare(tp=1)
    assert found() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    device.prepare(tp=2)
    assert found() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert not torch.are_deterministic_algorithms_enabled()
    device.prepare(tp=1, deterministic=True)
    assert found().items() >= device.DETERMINISTIC.items()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", device.ALLOCATOR)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: "max_split_size_mb:512", "CUDA_DEVICE_MAX_CONNECTIONS": "8", "NCCL_ALGO": "Tree"}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    device.prepare(tp=2, deterministic=True)
    assert found() == device.DETERMINISTIC | given


@pytest.mark.parametrize(("local", "visible", "own"), [(0, 8, 0), (5, 8, 5), (0, 1, 0), (5, 1, 0)])
def test_own_gpu(local: int, visible: int, own: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the scheduler has bound one GPU to each task."""
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert device.own_gpu() == own


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"rank 2 .* sees 2 GPUs \(CUDA_VISIBLE_DEVICES: 4,6\)"):
        device.own_gpu()


def test_deepspeed_prints_nothing_of_operators_that_it_cannot_compile() -> None:
    """As on a host with GPUs and without CUDA's compiler."""
    program = "import torch; torch.cuda.is_available = lambda: True; import pretrain.engine.engine"
    hidden = {"CUDA_HOME", "CUDA_PATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in hidden}
        | {"DS_ACCELERATOR": "cuda", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("given", "cores"),
    [
        ({"SLURM_CPUS_ON_NODE": "96"}, "24"),
        ({"SLURM_CPUS_ON_NODE": "96", "SLURM_CPUS_PER_TASK": "6"}, "6"),
        ({"SLURM_CPUS_ON_NODE": "3"}, "1"),
        ({}, "1"),
    ],
)
def test_cores_of_a_rank(given: dict[str, str], cores: str, tmp_path: Path) -> None:
    """Of four tasks on a node; job.sh asks SLURM for nothing but the names of the hosts."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    (tmp_path / "scontrol").chmod(0o755)
    shape = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[1-2]"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMP", "SRUN"))}
    done = subprocess.run(
        ["bash", "-euc", 'source slurm/job.sh; echo "$SRUN_CPUS_PER_TASK $OMP_NUM_THREADS"'],
        cwd=ROOT,
        env=inherited | shape | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{cores} {cores}\n"
