"""Progressive Layer Increase on BERT and progressive stacking on GPT-2, through the training loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from growth import Box, Plan
from pretrain import config
from pretrain.checkpoint import find, is_done
from pretrain.data.corpus.encoders import SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.event import plan
from pretrain.families.text import in_tokens
from tests.distributed.conftest import SYLLABLES
from tests.distributed.harness import run, run_killed
from tests.distributed.test_stage import losses, stage, state

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


def order(plans: list[Plan]) -> str:
    """The layers by age, a the first: what was born where."""
    layers = ["a"]
    for number, one in enumerate(plans):
        name = "bert.encoder.layer.{}.ln.weight"
        born = [bool(one.new_mask(name.format(i), Box.whole((32,))).all()) for i in range(one.new.layers)]
        assert sum(born) == 1
        layers.insert(born.index(True), chr(ord("b") + number))
    return "".join(layers)


@pytest.mark.parametrize("source", ["clone", "random"])
def test_the_order_of_nine_patches(source: str, tmp_path: Path) -> None:
    """Both sources put layers where the list says; a clone is the layer before it, bit for bit."""
    loaded = config.load(patches(tmp_path, tmp_path, source, list(range(1, 10)), 10))
    (one,) = loaded.stages
    arch, plans = one.model.architecture(), []
    for number in range(9):
        step = plan.patch_plan(loaded, one, number, arch)
        plans.append(step)
        arch, index, tag = step.new, INDICES[number], torch.arange(step.new.layers - 1.0)

        def read(kind: str, name: str, box: Box, tag: torch.Tensor = tag) -> torch.Tensor:
            return torch.full(box.shape, float(tag[int(name.split(".")[3])]))

        made = step.evaluate(f"bert.encoder.layer.{index}.ln.weight", Box.whole((32,)), read)
        assert torch.equal(made, torch.full((32,), float(index - 1)) if source == "clone" else torch.ones(32))
    assert order(plans) == ORDER


def test_nine_patches_in_one_process_group(sentences: Path, tmp_path: Path) -> None:
    """1 to 10 layers under PP2 without a restart."""
    at = list(range(1, 10))
    path = patches(sentences, tmp_path, "clone", at, 10, parallel={"pp": 2})
    assert run(2, stage, str(path), "grown", []) == ["", ""]
    folder = tmp_path / "run/grown"
    assert is_done(folder)
    found = find(folder / "checkpoints").manifest
    assert found is not None
    assert order([Plan.from_json(event["plan"]) for event in found.events]) == ORDER
    assert sorted(p.name for p in (folder / "events").iterdir()) == [f"step-{i:08d}.json" for i in at]


KILLS = [("pretrain.stage.run:finish_event", 1), ("pretrain.event.grow:certify", 2), ("pretrain.stage.run:grow", 2)]
"""At the first patch when it is certified, at the second when it is grown, at the third before anything. (A start after
a kill makes that patch again.)"""


@pytest.mark.parametrize("source", ["clone", "random"])
def test_killed_at_every_patch(source: str, sentences: Path, tmp_path: Path) -> None:
    """Under PP2, SIGKILL at each of three patches and as many resumes end with the bits of a run left alone."""
    alone, cut = (
        patches(sentences, tmp_path / name, source, [1, 2, 3], 4, parallel={"pp": 2}) for name in ("alone", "cut")
    )
    assert run(2, stage, str(alone), "grown", []) == ["", ""]
    for target, nth in KILLS:
        run_killed(2, target, nth, stage, str(cut), "grown", [])
    assert run(2, stage, str(cut), "grown", []) == ["", ""]
    folders = [tmp_path / name / "run/grown" for name in ("alone", "cut")]
    expected, found = (state(folder / "checkpoints") for folder in folders)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.array_equal(value, found[key]), key
    assert losses(folders[0]) == losses(folders[1])
    assert len(losses(folders[1])) == 4


def test_random_patches_learn(sentences: Path, tmp_path: Path) -> None:
    """Fresh layers under DP2, and nothing in them is dead."""
    path = patches(sentences, tmp_path, "random", [1, 2], 4, parallel={"dp": 2})
    assert run(2, stage, str(path), "grown", []) == ["", ""]
    for event in (tmp_path / "run/grown/events").iterdir():
        certificate = json.loads(event.read_text())["certificate"]
        assert not certificate["claims"]
        assert certificate["dead_share"] == 0


def test_progressive_stacking(text: Path, tmp_path: Path) -> None:
    """GPT-2 in two stages from `stacking:`: layer i + L starts as layer i, and each has its own epochs and schedule."""
    prepare(Source((text,)), tmp_path / "prepared", SentencePieceEncoder(vocab_size=300))
    path = curriculum(tmp_path / "prepared", tmp_path, "gpt2", stacking={"layers": [1, 2], "epochs": [0.1, 0.2]})
    loaded = config.load(path)
    budgets = [in_tokens(one).train for one in loaded.stages]
    assert budgets[1].tokens == pytest.approx(2 * budgets[0].tokens, rel=0.1)
    for name in ("layers-1", "layers-2"):
        assert run(2, stage, str(path), name, ["--parallel.tp", "2"]) == ["", ""]
        assert len(losses(tmp_path / "run" / name)) * 8 * 32 == budgets[name == "layers-2"].tokens
    found = find(tmp_path / "run/layers-2/checkpoints").manifest
    assert found is not None
    plan, before = Plan.from_json(found.events[0]["plan"]), state(tmp_path / "run/layers-1/checkpoints")
    for part in ("attn.c_proj.weight", "mlp.c_fc.bias"):
        for layer in range(2):
            name = f"transformer.h.{layer}.{part}"
            old = torch.from_numpy(before["weight", f"transformer.h.0.{part}"])
            made = plan.evaluate(name, Box.whole(old.shape), lambda kind, _, box, old=old: old[box.slices()])
            assert torch.equal(made, old)


def test_longer_samples(sentences: Path, tmp_path: Path) -> None:
    """BERT's recipe: short samples, then long ones with new positions, into another layout; the function is kept."""
    stages = [
        {"name": name, "train": {"seq_len": length, "tokens": 3 * 8 * length}, "parallel": parallel}
        for name, length, parallel in (("short", 32, {"dp": 2}), ("long", 64, {"pp": 2}))
    ]
    model = {"family": "bert", "vocab": 300, "hidden": 32, "layers": 2, "heads": 4, "ffn": 64}
    path = curriculum(sentences, tmp_path, "bert", stages=stages, model=model)
    for name in ("short", "long"):
        assert run(2, stage, str(path), name, []) == ["", ""]
    certificate = json.loads((tmp_path / "run/long/events/step-00000000.json").read_text())["certificate"]
    assert certificate["claims"]
    assert certificate["error"] <= 1e-5
    assert certificate["dead_share"] == 0
    records = [json.loads(line) for line in (tmp_path / "run/long/metrics.jsonl").read_text().splitlines()]
    for record in records:
        if "loss" in record:
            assert record["loss"] == pytest.approx(record["mlm_loss"] + record["nsp_loss"])
