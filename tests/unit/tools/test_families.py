"""Offline growth, its verification and what is shown of it, for the families with LayerNorm."""

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
from pretrain.data.corpus.encoders import SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from tests.unit.tools.runs import rewrite, save
from tools.export_hf import main as export
from tools.grow import main as grow
from tools.learn_growth import main as learn
from tools.prune import main as prune
from tools.show import main as show
from tools.verify import main as verify

Tensors = dict[tuple[str, str], torch.Tensor]
SMALL = {"vocab": 400, "hidden": 16, "layers": 2, "heads": 2, "ffn": 24}
LARGE = {"vocab": 500, "hidden": 32, "layers": 3, "heads": 4, "ffn": 40, "head_dim": 8}
POLICY = {"gpt2": {}, "bert": {"hidden": "replicate"}}  # BERT's head cannot be padded


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def events(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(a parent's checkpoint, the one that it was grown into, the family): wider, deeper, longer, with more words."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    (folder / "text.txt").write_text((Path(os.__file__).parent / "argparse.py").read_text())
    encoder = WordPieceEncoder(vocab_size=500) if family == "bert" else SentencePieceEncoder(vocab_size=500)
    prepare(Source((folder / "text.txt",), document="paragraph"), folder / "data", encoder)
    train = {"tokens": 640, "global_batch": 4, "lr": 1e-3, "precision": "fp32"}
    document = {
        "name": "run",
        "output": str(folder),
        "data": {"corpus": str(folder / "data"), "window": 16, "validation_fraction": 0.1},
        "stages": [
            {"name": "small", "model": {"family": family, **SMALL}, "train": {**train, "seq_len": 24}},
            {"name": "large", "model": {"family": family, **LARGE}, "train": {**train, "seq_len": 40}}
            | {"grow": POLICY[family]},
        ],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    stage = config.load(folder / "run.yaml").stage("small")
    parent = folder / "run" / "small" / "checkpoints" / "step-00000020"
    save(stage, parent)
    mark_done(folder / "run" / "small", {"validation_bits_per_byte": None})
    child = folder / "grown"
    assert grow([str(parent), str(child), "--config", str(folder / "run.yaml"), "--stage", "large"]) == 0
    return parent, child, family


def test_certificate_after_the_fact(events: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    parent, child, family = events
    capsys.readouterr()
    assert verify([str(child), "--parent", str(parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in told["checks"]}
    assert all(check["passed"] for check in checks.values())
    assert "held-out text" in checks["function"]["told"]
    assert told["certificate"]["preserved"]
    assert told["certificate"]["dead_share"] == 0
    with Reader(child) as reader:
        assert reader.manifest.events[-1]["certificate"] == told["certificate"]
    assert show([str(child), "--events"]) == 0
    text = capsys.readouterr().out
    assert f"{family}, " in text
    assert "preserved (tolerance" in text


def test_learned(events: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Positions and vocabulary grow as the stage says, the rest by learned factors."""
    parent, child, _ = events
    capsys.readouterr()
    command = [str(parent), str(tmp_path / "f"), "--config", str(child.parent / "run.yaml"), "--stage", "large"]
    assert learn([*command, "--steps", "8", "--batch", "4", "--lr", "1e-2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["grow"]) == {"layers", "hidden", "heads", "ffn"}
    assert told["held_out"]["learned"] < told["held_out"]["start"]


def test_pruned(events: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By held-out loss, of a model that has just grown; its event can be verified, and it can be exported."""
    _, child, _ = events
    assert prune([str(child), str(tmp_path / "two"), "--layers", "2", "--samples", "4"]) == 0
    assert verify([str(tmp_path / "two"), "--parent", str(child)]) == 0
    assert export([str(tmp_path / "two"), str(tmp_path / "hf")]) == 0
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written.get("num_hidden_layers", written.get("n_layer")) == 2


def gain_without_eps(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    return {}, {"norm_eps": 1e-2}


def keys_of_the_next_head(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    names = ("k_proj.weight", "k_proj.bias", "self.key.weight", "self.key.bias")
    return {key: v.roll(arch.sizes["head_dim"], 0) for key, v in tensors.items() if key[1].endswith(names)}, {}


@pytest.mark.parametrize("fault", [gain_without_eps, keys_of_the_next_head])
def test_planted(
    fault: Callable[[Architecture, Tensors], tuple[Tensors, dict[str, float]]],
    events: tuple[Path, Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parent, child, _ = events
    with Reader(child) as reader:
        arch = Architecture.from_json(reader.manifest.architecture)
        tensors = {("weight", n): reader.read("weight", n, Box.whole(t.shape)) for n, t in arch.tensors().items()}
    change, scalars = fault(arch, tensors)
    rewrite(child, tmp_path / "planted", change, **scalars)
    capsys.readouterr()
    assert verify([str(tmp_path / "planted"), "--parent", str(parent), "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert not checks["function"]["passed"]
    assert not checks["content" if change else "plan"]["passed"]


def test_without_a_corpus(events: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent, child, _ = events
    corpus = next(path for path in parent.parents if (path / "data").exists()) / "data"
    moved = corpus.rename(tmp_path / "away")
    capsys.readouterr()
    try:
        assert verify([str(child), "--parent", str(parent)]) == 0
    finally:
        moved.rename(corpus)
    assert "drawn at random" in capsys.readouterr().out
