"""kill -9 while a checkpoint is grown, on load and offline: the parent stays as it was, the next start succeeds."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import growth.random.normals  # noqa: F401 - compiled before the forks
from growth import Architecture, Box, Generations, Plan, between
from pretrain.checkpoint import (
    KINDS,
    Checkpointer,
    ManifestFields,
    Reader,
    mark_done,
    restore,
    step_folder,
    verify_all,
)
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.config import load as load_config
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.faults.killing import NEVER, Say, run
from tests.faults.test_kill import COUNTS, seeds
from tools.grow import main as grow_tool

OLD = Architecture(
    "llama2", {"vocab": 60, "hidden": 24, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 40}
)
NEW = OLD.replace({"vocab": 90, "hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 100})


def fields(arch: Architecture, stage: str, parent: str | None = None) -> ManifestFields:
    return ManifestFields(
        architecture=arch.to_json(),
        shapes={name: tensor.shape for name, tensor in arch.tensors().items()},
        stage=stage,
        parent={"path": "parent", "hash": parent} if parent else None,
    )


def save(root: Path, step: int, read: Callable[[str, str, Box], torch.Tensor], described: ManifestFields) -> None:
    with Checkpointer(root) as checkpointer:
        tensors = {
            kind: [
                (name, Box.whole(shape), read(kind, name, Box.whole(shape))) for name, shape in described.shapes.items()
            ]
            for kind in KINDS
        }
        checkpointer.save(step, tensors, described)


def grow(parent: Path, child: Path, plan: Plan) -> Callable[[Say], None]:
    """The start of a stage: read the grown boxes out of the parent's newest checkpoint, save them as its own step 0."""

    def work(say: Say) -> None:
        def load(reader: Reader) -> None:
            def read(kind: str, name: str, box: Box) -> torch.Tensor:
                return plan.evaluate(name, box, reader.read, kind)

            save(child, 0, read, fields(plan.new, "large", reader.manifest.hash))

        restore(parent, load)
        say("grown")

    return work


def tensor_files(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which tells how long it took."""
    return {name: data for name, data in contents(folder).items() if name != MANIFEST}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", COUNTS)
def test_growth_on_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, count: int
) -> None:
    parent = tmp_path / "parent"
    generator = torch.Generator().manual_seed(1)
    save(parent, 7, lambda kind, name, box: torch.rand(box.shape, generator=generator), fields(OLD, "small"))
    before = contents(step_folder(parent, 7))
    plan = between(OLD, NEW, {"vocab": "random"}, seed=3, init_std=0.02)
    _, lines = run(grow(parent, tmp_path / "dry", plan), NEVER)
    want = contents(step_folder(tmp_path / "dry", 0))
    killed = 0
    for seed in seeds(count, capsys, request):
        child = tmp_path / str(seed)
        _, survived = run(grow(parent, child, plan), kill_at=random.Random(seed).randrange(lines))
        killed += survived < 0
        assert contents(step_folder(parent, 7)) == before, f"seed {seed}"
        if step_folder(child, 0).exists():
            assert contents(step_folder(child, 0)) == want, f"seed {seed}"
        assert run(grow(parent, child, plan))[0] == ["grown"], f"seed {seed}"
        assert contents(step_folder(child, 0)) == want, f"seed {seed}"
        shutil.rmtree(child)
    assert MANIFEST in want
    assert killed > count // 2


CURRICULUM = """
name: run
output: {output}
data: {{corpus: none}}
train: {{tokens: 640, seq_len: 32, global_batch: 4, lr: 1e-3, precision: fp32}}
stages:
  - name: small
    model: {{vocab: 60, hidden: 24, layers: 1, heads: 2, kv_heads: 1, ffn: 40, head_dim: 8}}
  - name: large
    model: {{vocab: 60, hidden: 48, layers: 2, heads: 4, kv_heads: 2, ffn: 100, head_dim: 8}}
"""


def offline(config: Path, parent: Path, target: Path, processes: int) -> Callable[[Say], None]:
    """`tools/grow.py`: says its exit code."""

    def work(say: Say) -> None:
        given = [str(parent), str(target), "--config", str(config), "--stage", "large", "--no-certificate"]
        say(str(grow_tool([*given, "--processes", str(processes)])))

    return work


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("count", COUNTS)
def test_offline_growth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, count: int, processes: int
) -> None:
    """Killed with several processes, it may be one of them that dies: the others end too."""
    config = tmp_path / "run.yaml"
    config.write_text(CURRICULUM.format(output=tmp_path))
    stage = load_config(config).stage("small")
    arch = stage.model.architecture()
    parent = step_folder(tmp_path / "run" / "small" / "checkpoints", 7)
    state = State(arch, Generations.first(arch), (Birth(0, "small", 7),), Progress(step=7), {})
    generator = torch.Generator().manual_seed(1)
    save(
        parent.parent,
        7,
        lambda kind, name, box: torch.rand(box.shape, generator=generator),
        state.fields("small", stage.to_dict(), [7]),
    )
    mark_done(parent.parents[1], {})
    before = contents(parent)
    said, lines = run(offline(config, parent, tmp_path / "dry", 1), NEVER)
    assert said[-1] == "0", said
    if processes > 1:
        _, lines = run(offline(config, parent, tmp_path / "dry2", processes), NEVER)
    want = tensor_files(tmp_path / "dry")
    killed = 0
    for seed in seeds(count, capsys, request):
        target = tmp_path / str(seed)
        said, survived = run(offline(config, parent, target, processes), kill_at=random.Random(seed).randrange(lines))
        killed += survived < 0 or said[-1] != "0"
        assert contents(parent) == before, f"seed {seed}"
        said, _ = run(offline(config, parent, target, processes))
        assert said[-1] == "0", f"seed {seed}: {said}"
        assert tensor_files(target) == want, f"seed {seed}"
        assert not verify_all(target), f"seed {seed}"
        shutil.rmtree(target)
    assert killed > count // (2 * processes)  # no two runs of several processes go through the same lines
