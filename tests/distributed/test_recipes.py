"""Recipes that train only what is new: MSLT and LLaMA-Pro, from their configs, with small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from growth import Box, Plan
from pretrain.checkpoint import find
from pretrain.data.corpus.encoders import WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.estimate.flops import training_flops
from tests.distributed.harness import run
from tests.distributed.test_stage import stage, state

SMALL: dict[str, dict[str, Any]] = {
    "train": {"seq_len": 32, "global_batch": 4, "micro_batch": 2, "precision": "fp32", "lr": 1e-3, "epochs": 0}
    | {"tokens": 3 * 4 * 32, "eval_bytes": 512},
    "model": {"vocab": 300, "hidden": 32, "heads": 4, "ffn": 64},
    "log": {"interval": 1, "wandb": False},
    "checkpoint": {"interval": 100},
}


@pytest.fixture(scope="module")
def wordpieces(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The words of `corpus` in sentences of eight, for BERT."""
    folder = tmp_path_factory.mktemp("wordpieces")
    with (folder / "text.jsonl").open("w") as out:
        for line in (corpus.parent / "text.jsonl").read_text().splitlines()[:100]:
            words = json.loads(line)["text"].split()
            sentences = [" ".join(words[i : i + 8]).capitalize() + "." for i in range(0, len(words), 8)]
            print(json.dumps({"text": " ".join(sentences)}), file=out)
    prepare(Source((folder / "text.jsonl",)), folder / "prepared", WordPieceEncoder(vocab_size=300))
    return folder / "prepared"


def shrunk(name: str, corpus: Path, output: Path) -> Path:
    """A curriculum of configs/ with a narrow model, three steps a stage, and of the stages that grow only the first."""
    found: dict[str, Any] = yaml.safe_load(Path(f"configs/{name}.yaml").read_text())
    for section, keys in SMALL.items():
        found[section] = {**found.get(section, {}), **keys}
    found |= {"name": "run", "output": str(output), "data": {"corpus": str(corpus), "validation_fraction": 0.05}}
    first, second, *later = found["stages"]
    found["stages"] = [first, second]
    if later:
        found["stages"].append({**later[-1], "model": second["model"]})
    path = output / "curriculum.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.mark.parametrize("name", ["bert_mslt", "gpt2_mslt", "bert_llama_pro", "gpt2_llama_pro"])
def test_only_what_is_new_trains(name: str, corpus: Path, wordpieces: Path, tmp_path: Path) -> None:
    """The old weights and their moments stay as they are, bit for bit, and all that is new moves (behind zero branches
    from the second step on); at last all does."""
    path = shrunk(name, wordpieces if name.startswith("bert") else corpus, tmp_path)
    names = [each["name"] for each in yaml.safe_load(path.read_text())["stages"]]
    for each in names:
        assert run(1, stage, str(path), each, []) == [""]
    folders = [tmp_path / "run" / each for each in names]
    parent, child, *rest = (state(folder / "checkpoints") for folder in folders)
    manifest = find(folders[1] / "checkpoints").manifest
    assert manifest is not None
    plan = Plan.from_json(manifest.events[-1]["plan"])

    def read(kind: str, tensor: str, box: Box) -> torch.Tensor:
        return torch.from_numpy(parent[kind, tensor][box.slices()])

    moved = 0
    for (kind, tensor), value in child.items():
        box = Box.whole(value.shape)
        start, born = plan.evaluate(tensor, box, read, kind).numpy(), plan.new_mask(tensor, box).numpy()
        assert born.all() or not born.any()
        if born.any():
            moved += 1
            assert not np.array_equal(value, start), (kind, tensor)
        else:
            assert np.array_equal(value, start), (kind, tensor)
    new = {layer for layer in range(plan.new.layers) if born_layer(plan, layer)}
    assert moved == 3 * sum(tensor.layer in new for tensor in plan.new.tensors().values())
    if name.endswith("mslt"):
        (last,) = rest
        assert not any(np.array_equal(value, child[key]) for key, value in last.items())
    certificate = manifest.events[-1]["certificate"]
    assert certificate["preserved"] == name.endswith("pro")
    steps = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    first, second, _ = (record["flops"] for record in steps if "loss" in record)
    frozen = {"embedding", "head", *range(plan.new.layers)} - new
    assert second - first == pytest.approx(training_flops(plan.new, 32, frozen=frozen) * 4 * 32)
    assert second - first < 0.8 * training_flops(plan.new, 32) * 4 * 32


def born_layer(plan: Plan, layer: int) -> bool:
    """Whether a layer is new."""
    name = next(name for name, tensor in plan.new.tensors().items() if tensor.layer == layer)
    return bool(plan.new_mask(name, Box.whole(plan.new.tensor(name).shape)).all())
