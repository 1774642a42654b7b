"""A data curriculum through the training loop: configs/data_curriculum.yaml on real text, made small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import yaml

from pretrain.checkpoint import find
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.report import history, mixture
from tests.distributed.harness import run
from tests.distributed.test_stage import losses, stage
from tools import demo_corpus, study_corpus

CONFIG = Path(__file__).parents[2] / "configs/data_curriculum.yaml"
STEPS = 6
TRAIN = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "tokens": STEPS * 8 * 32, "warmup_tokens": 0}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the two corpora that the file names: chapters of the Bible, and of Python's manual what Python
    itself carries, laid where Debian's package has it."""
    folder = tmp_path_factory.mktemp("mixed")
    manual = folder / "usr/share/doc/python3/html/_sources"
    manual.mkdir(parents=True)
    for name, text in sorted(topics.items())[:25]:
        (manual / f"{name}.rst.txt").write_text(text)
    (folder / "kjv.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demo_corpus.chapters()[:25]))
    given = [str(folder / "manuals.jsonl"), "--package", "python3-doc", "--root", str(folder)]
    assert study_corpus.main(given) == 0
    texts = [folder / f"{name}.jsonl" for name in ("kjv", "manuals")]
    prepare(Source(tuple(texts)), folder / "both", SentencePieceEncoder(vocab_size=500))
    for text in texts:
        prepare(Source((text,)), folder / text.stem, SentencePieceEncoder(folder / "both/tokenizer"))
    return folder


def small(corpora: Path, output: Path) -> str:
    """The file with models and budgets of a test; everything that is about text is as it stands there."""
    raw: dict[str, Any] = yaml.safe_load(CONFIG.read_text().replace("data/mixed/", f"{corpora}/"))
    raw |= {"output": str(output), "log": {"interval": 1, "wandb": False}, "checkpoint": {"interval": 3}}
    raw["data"]["window"] = 16
    raw["train"] |= {**TRAIN, "eval_interval": STEPS, "eval_bytes": 2048}
    raw["model"]["head_dim"] = 8
    for number, one in enumerate(raw["stages"]):
        one["model"] = {"vocab": (400, 450, 490)[number], "hidden": 32, "layers": 1, "heads": 4, "ffn": 64}
        one["train"] = {}
    path = output / "curriculum.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def several(path: str, stops: list[tuple[str, int | None]]) -> list[str]:
    """One rank of stages, each up to this step or to its end; the user's errors."""
    return [stage(path, name, [], stop) for name, stop in stops]


def test_a_data_curriculum(corpora: Path, tmp_path: Path) -> None:
    """Sources come in and are weighed anew. A stage that is stopped and resumed is bit for bit the one that was left
    alone, and goes on with the same text on one rank with another micro-batch."""
    alone, cut = (small(corpora, tmp_path / which) for which in ("alone", "cut"))
    assert run(2, several, alone, [("verses", None), ("both", None), ("manuals", None)]) == [["", "", ""]] * 2
    folder, other = (tmp_path / which / "data-curriculum" for which in ("alone", "cut"))
    for name in ("verses", "both"):
        shutil.copytree(folder / name, other / name)
    assert run(2, several, cut, [("manuals", 2), ("manuals", 2)]) == [["", ""]] * 2
    assert run(1, stage, cut, "manuals", ["--parallel.dp", "1", "--train.micro_batch", "4"]) == [""]
    expected, given = losses(folder / "manuals"), losses(other / "manuals")
    assert given[:4] == expected[:4]
    assert given[4:] == pytest.approx(expected[4:], rel=1e-4)
    cursor = _cursor(folder / "manuals")
    assert _cursor(other / "manuals") == cursor

    # What each has given, before the weights changed and after; see Megatron-LM's issue 457.
    rows = mixture.rows(history.load(folder))
    budget = TRAIN["tokens"]
    assert [(row["stage"], row["source"], row["tokens"], row["tokens_in_all"]) for row in rows] == [
        ("verses", "kjv", budget, budget),
        ("both", "kjv", budget * 3 // 4, budget * 7 // 4),
        ("both", "manuals", budget // 4, budget // 4),
        ("manuals", "kjv", budget // 4, budget * 2),
        ("manuals", "manuals", budget * 3 // 4, budget),
    ]
    assert [entry["tokens"] for entry in cursor["sources"]] == [2 * budget, budget]
    assert "| both | manuals | weight 1 | 0.2500 | 384 | 384 |" in "\n".join(mixture.markdown(history.load(folder)))
    last = history.load(folder)[-1].series("validation_loss")[-1]
    for key in ("validation_loss", "validation_bits_per_byte"):
        assert last[key] == pytest.approx(last[f"{key}_kjv"] / 4 + last[f"{key}_manuals"] * 3 / 4)


def _cursor(folder: Path) -> Any:
    manifest = find(folder / "checkpoints").manifest
    assert manifest is not None
    return manifest.cursor
