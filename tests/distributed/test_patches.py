"""Progressive Layer Increase on BERT and progressive stacking on GPT-2, through the training loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml

from growth import Architecture
from pretrain import config
from pretrain.checkpoint import find, is_done
from pretrain.data.encoders import SentencePieceEncoder, WordPieceEncoder
from pretrain.data.prepare import prepare
from pretrain.data.sources import Source
from pretrain.train import train
from tests.distributed.harness import run
from tests.distributed.test_stage import SYLLABLES, losses, stage, state

INDICES = [1, 1, 2, 2, 2, 3, 3, 3, 4]
ORDER = "acfijhgedb"  # of the layers by age after the nine patches


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of eight sentences of drawn words."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(SYLLABLES, size=draw.integers(1, 4))) for _ in range(300)]
    with (folder / "text.jsonl").open("w") as out:
        for _ in range(300):
            sentences = [" ".join(draw.choice(words, size=8)).capitalize() + "." for _ in range(8)]
            print(json.dumps({"text": " ".join(sentences)}), file=out)
    return folder / "text.jsonl"


def curriculum(corpus: Path, output: Path, family: str, **changes: Any) -> Path:
    found: dict[str, Any] = {
        "name": "run",
        "seed": 5,
        "output": str(output),
        "data": {"corpus": str(corpus), "validation_fraction": 0.05, "window": 64},
        "model": {"family": family, "vocab": 300, "hidden": 32, "heads": 4, "ffn": 64},
        "train": {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "min_lr": 2e-3, "precision": "fp32"}
        | {"schedule": "linear", "warmup": 0.1, "eval_interval": 10, "eval_bytes": 2048},
        "checkpoint": {"interval": 100},
        "log": {"interval": 1, "wandb": False},
        **changes,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "curriculum.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


def patches(corpus: Path, output: Path, source: str, at: list[int], total: int, **changes: Any) -> Path:
    """A stage of `total` steps with a patch before each step of `at`."""
    patches = [{"at": step / total, "index": i, "source": source} for step, i in zip(at, INDICES, strict=False)]
    one = {"name": "grown", "model": {"layers": 1}, "train": {"tokens": total * 8 * 32}, "patches": patches}
    return curriculum(corpus, output, "bert", stages=[one], **changes)


@pytest.fixture(scope="module")
def sentences(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "prepared"
    prepare(Source((text,)), folder, WordPieceEncoder(vocab_size=300))
    return folder


def order_of_layers(folder: Path) -> str:
    """The layers of a stage's newest checkpoint by age, from the plans of its events."""
    manifest = find(folder / "checkpoints").manifest
    assert manifest is not None
    layers = ["a"]
    for number, event in enumerate(manifest.events):
        ((operator,),) = [step["operators"] for step in event["plan"]["steps"]]
        assert operator == "layers: insert"
        born = event["plan"]["steps"][0]["layers"]["born"]
        index = born.index(True) if isinstance(born, list) else next(i for i, b in enumerate(born) if b)
        layers.insert(index, chr(ord("b") + number))
    return "".join(layers)


@pytest.mark.parametrize("source", ["clone", "random"])
def test_nine_patches_in_one_process_group(source: str, sentences: Path, tmp_path: Path) -> None:
    """1 to 10 layers under PP2 without a restart, in the order that was drawn; a stop before or after a patch and a
    resume end with the same weights, bit for bit."""
    alone = patches(sentences, tmp_path / "alone", source, list(range(1, 10)), 10, parallel={"pp": 2})
    assert run(2, stage, str(alone), "grown", []) == ["", ""]
    folder = tmp_path / "alone/run/grown"
    assert is_done(folder)
    found = find(folder / "checkpoints").manifest
    assert found is not None
    assert Architecture.from_json(found.architecture).layers == 10
    assert len(list((folder / "events").glob("*.json"))) == 9
    tensors = state(folder / "checkpoints")
    assert not any(np.isnan(v).any() for v in tensors.values())
    cut = patches(sentences, tmp_path / "cut", source, list(range(1, 10)), 10, parallel={"pp": 2})
    for step in (3, 4):
        assert run(2, stage, str(cut), "grown", [], step) == ["", ""]
    assert run(2, stage, str(cut), "grown", []) == ["", ""]
    for key, value in state(tmp_path / "cut/run/grown/checkpoints").items():
        assert np.array_equal(value, tensors[key]), key
    assert losses(folder) == losses(tmp_path / "cut/run/grown")
