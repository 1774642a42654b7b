"""Manifests that others wrote: each is a checkpoint of one model, or refused in one line before a file is opened."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import growth
from growth import Architecture, Box, Generations, Plan
from growth.certificate import Certificate
from pretrain.checkpoint import KINDS, Manifest, model_of, verify_all, write_checkpoint
from pretrain.checkpoint.manifest import MANIFEST, digest
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests import mutations
from tools import show

OLD = Architecture("gpt2", {"vocab": 6, "positions": 4, "hidden": 4, "layers": 1, "heads": 2, "head_dim": 2, "ffn": 8})
NEW = OLD.replace({"vocab": 8, "hidden": 6, "heads": 3, "layers": 2})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("fuzz") / "checkpoints" / "step-00000007")


def make(path: Path) -> Path:
    """A checkpoint of a model that was imported and has grown: the manifest has every part that one can have."""
    pieces = [[0], [1, 2]]
    plan = growth.between(OLD, NEW, {"layers": "stack"}, seed=3, init_std=0.02, pieces=pieces)
    certificate = Certificate.of(plan, error=1e-7, loss_before=1.0, loss_after=1.0, dead={"lm_head": (1, 2)})
    vocabulary = {"order": "identity", "tokenizer": None, "reason": "none"}
    events = (
        {"stage": "base", "imported": {"name": "m", "config": {}, "vocabulary": vocabulary, "shard_order": "sorted"}},
        {"stage": "wide", "plan": plan.to_json(), "certificate": certificate.to_json(), "seconds": 1.5},
    )
    births = (Birth(0, "base", 0), Birth(100, "wide", 4))
    cursor = {"epoch": 0, "document": 3, "token": 1, "byte": 0, "drawn": 2, "next": {"epoch": 0}, "corpus": "c"}
    parent = {"path": "runs/base/checkpoints/step-00000000", "hash": "0" * 32}
    generations = Generations.first(OLD).grow(plan.steps)
    state = State(NEW, generations, births, Progress(7, 9, 100, 1e9, 2.0, (3.0,)), cursor, events, parent)
    config = {"data": {"corpus": "x"}, "parallel": {"tp": 1}, "train": {"seq_len": 4}, "model": {"init_std": 0.02}}

    def zeros(kind: str, name: str, box: Box) -> torch.Tensor:
        return torch.zeros(box.shape)

    write_checkpoint(path, 7, list(KINDS), zeros, state.fields("wide", config, [0, 4]), {})
    return path


def opened(path: Path) -> Callable[[bytes], None]:
    """What the tools do with a manifest: show it, go on from it, and read all that it names."""

    def read(data: bytes) -> None:
        manifest = Manifest.from_bytes(data, path / MANIFEST)
        names = {path.name for path in path.iterdir()}
        assert all("/" not in name and name not in ("", ".", "..") for name in manifest.files)
        model_of(manifest, path)
        State.from_reader(SimpleNamespace(manifest=manifest, path=path))  # type: ignore[arg-type]
        data = show.describe(path, manifest)
        text = "".join(part(data) for part in (show._head, show._parts, show._generations, show._files, show._history))
        assert text
        json.dumps(data, allow_nan=False)
        for event in manifest.events:
            if "plan" in event:
                assert show._event(event)
                evaluate(Plan.from_json(event["plan"]))
        if set(manifest.files) <= names:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Manifest, "load", lambda _: manifest)
                verify_all(path)

    return read


def evaluate(plan: Plan) -> None:
    """All elements of a plan that is small enough."""
    if plan.old and plan.new.parameters() < 2000 and plan.old.parameters() < 2000:
        for name, tensor in plan.new.tensors().items():
            plan.evaluate(name, Box.whole(tensor.shape), lambda kind, name, box: torch.zeros(box.shape))


def signed(data: bytes, seed: int) -> bytes:
    """With the hash of its content, as one who means harm would write it; a tenth is left as damage leaves it."""
    try:
        body = json.loads(data)
        if seed % 10 and isinstance(body, dict):
            body.pop("hash", None)
            return json.dumps({**body, "hash": digest(body)}).encode()
    except (ValueError, RecursionError):
        pass
    return data


def mutate(checkpoint: Path, seeds: range) -> int:
    """How many mutations of these seeds are refused."""
    document: Any = json.loads((checkpoint / MANIFEST).read_bytes())
    read, before, count = opened(checkpoint), mutations.files_of(checkpoint.parent), 0
    read((checkpoint / MANIFEST).read_bytes())
    for seed in seeds:
        data = signed(mutations.of_json(document, seed), seed)
        count += mutations.refused(lambda data=data: read(data), seed)  # type: ignore[misc]
    assert mutations.files_of(checkpoint.parent) == before
    return count


def test_manifests(checkpoint: Path) -> None:
    assert mutate(checkpoint, range(300)) > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_manifests(checkpoint: Path) -> None:
    assert mutate(checkpoint, range(1000, 60_000)) > 20_000
