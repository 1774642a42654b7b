"""Layers taken away from a checkpoint: what is left is the model of these layers, here and in transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from growth import Architecture, Box
from pretrain import config
from pretrain.checkpoint import Reader, mark_done
from pretrain.data.corpus.corpus import Corpus
from pretrain.families.reference import logits
from pretrain.verify import pruning
from tests.unit.tools.runs import save
from tools import prune
from tools.export_hf import main as export
from tools.prune import main
from tools.verify import main as verify

LAYERS = 5
TRAIN = {"tokens": 640, "seq_len": 32, "global_batch": 4, "lr": 1e-3, "precision": "fp32", "layer_drop": 0.2}


@pytest.fixture(scope="module")
def stage(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage that has finished."""
    folder = tmp_path_factory.mktemp("prune")
    few = next(v for v in range(400, 640) if corpus.tokenizer.age.cut[v])
    model = {"vocab": few, "hidden": 24, "layers": LAYERS, "heads": 4, "kv_heads": 2, "ffn": 40}
    document = {
        "name": "run",
        "output": str(folder),
        "data": {"corpus": str(corpus.path), "window": 16},
        "train": TRAIN,
        "stages": [{"name": "small", "model": model}],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    curriculum = config.load(folder / "run.yaml")
    save(curriculum.stages[0], curriculum.folder / "small" / "checkpoints" / "step-00000020")
    mark_done(curriculum.folder / "small", {})
    return curriculum.folder / "small"


def pruned(stage: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([str(stage), *words, "--samples", "4", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_is_left_is_the_model_of_these_layers(
    stage: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the reference model bit for bit, and in transformers; with their moments, and with a record of the event."""
    told = pruned(stage, capsys, str(tmp_path / "two"), "--keep", "4,1")
    assert told["kept"] == [1, 4]
    ids = torch.arange(64).view(2, 32)
    with Reader(stage / "checkpoints" / "step-00000020") as whole, Reader(tmp_path / "two") as two:
        arch = Architecture.from_json(two.manifest.architecture)
        assert arch.layers == 2

        def built(kind: str, name: str, box: Box) -> torch.Tensor:
            for new, old in enumerate([1, 4]):
                name = name.replace(f"layers.{new}.", f"layers.OLD{old}.")
            return whole.read(kind, name.replace("OLD", ""), box)

        expected = logits(built, arch, ids)
        assert torch.equal(logits(two.read, arch, ids), expected)
        for name, tensor in arch.tensors().items():
            box = Box.whole(tensor.shape)
            assert torch.equal(two.read("exp_avg", name, box), built("exp_avg", name, box))
    assert export([str(tmp_path / "two"), str(tmp_path / "hf")]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    order = torch.from_numpy(corpus.tokenizer.stock_order(arch.sizes["vocab"]))
    with torch.no_grad():
        assert torch.allclose(model(order[ids]).logits[..., order], expected, rtol=1e-4, atol=1e-4)
    assert verify([str(tmp_path / "two"), "--parent", str(stage)]) == 0
    assert told["certificate"]["error"] > 1e-3
    assert not told["certificate"]["preserved"]
    assert told["certificate"]["operators"] == ["layers: drop"]
    capsys.readouterr()
    assert pruned(stage, capsys, str(tmp_path / "two"), "--keep", "1,4")["existed"]


def test_chosen_by_held_out_loss(stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The first to go is the one without which the loss is smallest; stopped, it goes on with what was decided."""
    measure, asked = pruning.held_out_loss, []

    def stops(read: Any, arch: Architecture, samples: Any) -> float:
        asked.append(arch.layers)
        if arch.layers == LAYERS - 2:
            raise KeyboardInterrupt
        return measure(read, arch, samples)

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "held_out_loss", stops)
        with pytest.raises(KeyboardInterrupt):
            main([str(stage), "--layers", "3", "--samples", "4"])
    assert asked == [4, 4, 4, 4, 4, 3]
    asked.clear()
    monkeypatch.setattr(pruning, "held_out_loss", lambda *which: asked.append(which[1].layers) or measure(*which))
    told = pruned(stage, capsys, "--layers", "3")
    assert asked == [3, 3, 3, 3, 5, 3]
    assert Path(told["target"]) == stage / "pruned-3"
    assert not list(stage.glob(".pruned*"))
    assert told["removed"][-1]["held_out_loss"] == pytest.approx(told["held_out_loss"]["pruned"], abs=1e-6)
    assert sorted([*told["kept"], *(each["layer"] for each in told["removed"])]) == list(range(LAYERS))
    first = {}
    for layer in range(LAYERS):
        kept = ",".join(str(other) for other in range(LAYERS) if other != layer)
        first[layer] = pruned(stage, capsys, f"{stage.parent}/without-{layer}", "--keep", kept)["held_out_loss"][
            "pruned"
        ]
    assert told["removed"][0]["layer"] == min(first, key=lambda layer: first[layer])


@pytest.mark.parametrize(
    ("blocks", "kept", "left"),
    [
        ({"layers": 5}, [0, 2, 4], {"layers": 3}),
        ({"layers": 6, "share": 2}, [0, 2], {"layers": 4, "share": 2}),
        ({"order": "ssfsf"}, [0, 2, 3], {"order": "sfs"}),
        ({"layers": 3, "order": {"sandwich": 1}}, [0, 2, 3, 5], {"order": "sfsf"}),
    ],
)
def test_every_other_of_each_kind(blocks: dict[str, Any], kept: list[int], left: dict[str, Any]) -> None:
    """And the stage of what is left has this very model."""
    shape = {"vocab": 64, "hidden": 8, "heads": 2, "ffn": 8}
    document = {"name": "run", "data": {"corpus": "none"}, "train": TRAIN, "stages": [{"name": "one"}]}
    (stage,) = config.curriculum.curriculum_of({**document, "model": {**shape, **blocks}}, Path("x.yaml")).stages
    arch = stage.model.architecture()
    assert pruning.every_other(arch) == kept
    new = pruning.plan_of(arch, kept).new
    assert prune._stage_of(stage, new).model == replace(stage.model, **{"layers": 0, "order": None, **left})
    assert prune._stage_of(stage, new).model.architecture() == new


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--keep", "0,2,5"], "there is no layer 5: the layers are 0 to 4"),
        (["--keep", "1,2,1"], "layer 1 is named twice"),
        (["--keep", "0,1,2,3,4"], "has 5 layers, and 5 are to be kept: keep fewer"),
        (["--keep", "every-third"], "give every-other, or numbers of layers such as 0,2,5"),
        (["--keep", ""], "give every-other, or numbers"),
        (["--layers", "7"], "has 5 layers, and 7 are to be kept: keep fewer"),
        (["--layers", "2", "--corpus", "/nothing"], "/nothing: there is no corpus to measure on"),
    ],
)
def test_errors(stage: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    """One line that says what is wrong; nothing is written."""
    before = sorted(stage.rglob("*"))
    assert main([str(stage), *words]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert sorted(stage.rglob("*")) == before


@pytest.mark.parametrize("words", [["--layers", "0"], [], ["--keep", "0", "--layers", "1"]])
def test_command_line(stage: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(stage), *words])
    assert ended.value.code == 2
