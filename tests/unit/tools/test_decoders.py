"""A grown decoder of each family is verified, and what is planted in it is found."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from growth import Architecture, Box
from pretrain import config
from pretrain.checkpoint import Reader, mark_done
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from tests.unit.tools.runs import rewrite, save
from tools.grow import main as grow
from tools.verify import main as verify

Tensors = dict[tuple[str, str], torch.Tensor]
Fault = Callable[[Architecture, Tensors], tuple[Tensors, dict[str, float]]]
SMALL = {"vocab": 360, "hidden": 12, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 16}
LARGE = {"vocab": 400, "hidden": 20, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 24}


def _ending(tensors: Tensors, end: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key[1].endswith(end)}


def eps_as_it_was(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    return {}, {"norm_eps": arch.scalars["norm_eps"] * 20 / 12}


def gains_of_keys_and_queries_swapped(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    swapped = {key: tensors[key[0], key[1].replace("q_norm", "k_norm")] for key in _ending(tensors, "q_norm.weight")}
    return swapped | {
        key: tensors[key[0], key[1].replace("k_norm", "q_norm")] for key in _ending(tensors, "k_norm.weight")
    }, {}


def norm_of_padded_keys(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """New slots of keys are zero: their mean square is another one."""
    kept = torch.arange(arch.sizes["head_dim"]) % 2 == 0
    return {key: value * kept.repeat(2)[:, None] for key, value in _ending(tensors, "k_proj.weight").items()}, {}


def biases_without_the_factor(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """Those of queries, when heads grow wider."""
    return {key: value / 2**0.5 for key, value in _ending(tensors, "q_proj.bias").items()}, {}


def head_reads_new_channels(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """A tied embedding writes them."""
    new = torch.arange(arch.sizes["hidden"]) >= 12
    return {key: value + 0.1 * new for key, value in _ending(tensors, "embed_tokens.weight").items()}, {}


def frequencies_of_another_length(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    return {}, {"rope_original_length": 8.0}


FAULTS: dict[str, list[Fault]] = {
    "qwen3_tied": [
        eps_as_it_was,
        gains_of_keys_and_queries_swapped,
        norm_of_padded_keys,
        head_reads_new_channels,
    ],
    "qwen2": [eps_as_it_was, biases_without_the_factor],
    "llama3": [frequencies_of_another_length],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text((Path(os.__file__).parent / "argparse.py").read_text())
    source = Source((folder / "text.txt",), document="paragraph")
    prepare(source, folder / "data", SentencePieceEncoder(vocab_size=400))
    return folder / "data"


@pytest.mark.parametrize("family", FAULTS)
def test_verified(family: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wider, deeper, with wider heads and more words: sound, alive, and every fault is found twice."""
    train = {"tokens": 640, "global_batch": 4, "lr": 1e-3, "precision": "fp32", "seq_len": 24}
    stages = [{"name": "small", "model": SMALL}, {"name": "large", "model": LARGE}]
    document = {
        "name": "run",
        "output": str(tmp_path),
        "data": {"corpus": str(corpus), "window": 16, "validation_fraction": 0.1},
        "model": {"family": family},
        "train": train,
        "stages": stages,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    parent, child = tmp_path / "run/small/checkpoints/step-00000020", tmp_path / "grown"
    save(config.load(tmp_path / "run.yaml").stage("small"), parent)
    mark_done(tmp_path / "run" / "small", {"validation_bits_per_byte": None})
    assert grow([str(parent), str(child), "--config", str(tmp_path / "run.yaml"), "--stage", "large"]) == 0
    capsys.readouterr()
    assert verify([str(child), "--parent", str(parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["certificate"]["preserved"]
    # Keys of new slots in a new layer wait two steps: for its branch, and then for the queries of these slots.
    assert told["certificate"]["dead_share"] < 0.02
    with Reader(child) as reader:
        arch = Architecture.from_json(reader.manifest.architecture)
        tensors = {("weight", n): reader.read("weight", n, Box.whole(t.shape)) for n, t in arch.tensors().items()}
    for fault in FAULTS[family]:
        change, scalars = fault(arch, tensors)
        target = tmp_path / fault.__name__
        rewrite(child, target, change, **scalars)
        assert verify([str(target), "--parent", str(parent), "--json"]) == 1, fault
        checks = {check["name"]: check["passed"] for check in json.loads(capsys.readouterr().out)["checks"]}
        assert not checks["function"], fault
        assert not checks["content" if change else "plan"], fault
