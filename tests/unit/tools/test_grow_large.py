"""Offline growth of a checkpoint of 350M parameters with moments: what it needs of memory does not depend on that."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from growth import Architecture, Box, Generations
from pretrain.checkpoint import KINDS, Manifest, Reader, mark_done, step_folder, write_checkpoint
from pretrain.config import load
from pretrain.event.plan import plan_of
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State

TOOL = Path(__file__).parents[3] / "tools" / "grow.py"
MIB = 1 << 20
ROOM = 30 << 30  # bytes
CURRICULUM = """
name: run
output: {output}
data: {{corpus: none}}
train: {{tokens: 640, seq_len: 32, global_batch: 4, lr: 1e-3, precision: fp32}}
stages:
  - name: small
    model: {{vocab: 32000, hidden: 1024, layers: 24, heads: 16, kv_heads: 16, ffn: 2816, head_dim: 64}}
  - name: large
    model: {{vocab: 32000, hidden: 1280, layers: 32, heads: 20, kv_heads: 20, ffn: 3456, head_dim: 64}}
"""


MEASURED = """
import os, sys
pid = os.posix_spawn(sys.executable, sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(command: list[str]) -> int:
    """Bytes of memory that the largest process of a Python command had at its peak: the kernel counts its children too.

    It also counts what the process had before it became that command, all that its parent has: so the parent is a small
    process, not this one.
    """
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """On the disk, and gone at once: pytest keeps the folders of the last runs."""
    free = shutil.disk_usage(tmp_path).free
    if free < ROOM:
        pytest.skip(f"NOT TESTED: {ROOM >> 30} GB of disk are needed, and {free >> 30} GB are free")
    yield tmp_path
    shutil.rmtree(tmp_path)


def parent_of(folder: Path, arch: Architecture, config: dict[str, object]) -> Manifest:
    """Every element random, so that no two blocks are the same."""
    state = State(arch, Generations.first(arch), (Birth(0, "small", 7),), Progress(step=7), {})
    generator = torch.Generator().manual_seed(1)

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return torch.rand(box.shape, generator=generator)

    path = step_folder(folder / "run" / "small" / "checkpoints", 7)
    manifest = write_checkpoint(path, 7, list(KINDS), read, state.fields("small", config, [7]), {})
    mark_done(folder / "run" / "small", {})
    return manifest


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_350_million_parameters_with_moments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "run.yaml"
    config.write_text(CURRICULUM.format(output=folder))
    curriculum = load(config)
    small, large = curriculum.stage("small"), curriculum.stage("large")
    manifest = parent_of(folder, small.model.architecture(), small.to_dict())
    assert manifest.size > 12 * 350e6
    torch_alone = peak([sys.executable, "-c", "import torch"])
    command = [sys.executable, str(TOOL), str(folder / "run"), "TARGET", "--config", str(config), "--stage", "large"]
    command.append("--no-certificate")
    found = []
    for processes in (1, 2):
        command[3] = str(folder / f"grown-{processes}")
        begun = time.perf_counter()
        rise = peak([*command, "--processes", str(processes)]) - torch_alone
        seconds = time.perf_counter() - begun
        size = Manifest.load(Path(command[3])).size
        begun = time.perf_counter()
        copied = shutil.copytree(command[3], folder / "copy")
        for file in copied.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        copying = time.perf_counter() - begun
        shutil.rmtree(copied)
        with capsys.disabled():
            print(
                f"\n{manifest.size:,} bytes of {small.model.architecture().parameters():,} parameters -> "
                f"{size:,} bytes in {processes} process(es): {rise / MIB:.0f} MiB above {torch_alone / MIB:.0f} MiB "
                f"with torch loaded, {seconds:.1f} s with the start of the interpreter; copy and fsync {copying:.1f} s"
            )
        assert rise < 256 * MIB
        found.append(Manifest.load(Path(command[3])))
    assert found[0].files == found[1].files
    with Reader(folder / "run" / "small" / "checkpoints" / "step-00000007") as old, Reader(folder / "grown-2") as new:
        plan = plan_of(curriculum, large, old.manifest, None)
        for name in (
            "lm_head.weight",
            "model.layers.17.mlp.down_proj.weight",
            "model.layers.31.input_layernorm.weight",
        ):
            shape = plan.new.tensor(name).shape
            box = Box((shape[0] // 2, *(0 for _ in shape[1:])), (shape[0] // 2 + 100, *shape[1:]))
            for kind in KINDS:
                assert torch.equal(new.read(kind, name, box), plan.evaluate(name, box, old.read, kind)), (kind, name)
