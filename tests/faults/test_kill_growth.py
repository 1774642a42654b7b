"""kill -9 while a stage grows out of its parent's checkpoint: the parent stays as it was, the next start succeeds."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from growth import Architecture, Box, Plan, between
from pretrain.checkpoint import KINDS, Checkpointer, ManifestFields, Reader, restore, step_folder
from pretrain.checkpoint.manifest import MANIFEST
from tests.faults.killing import NEVER, Say, run
from tests.faults.test_kill import COUNTS, seeds

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
    plan = between(OLD, NEW, seed=3, init_std=0.02)
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
    assert MANIFEST in want
    assert killed > count // 2
