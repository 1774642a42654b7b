"""A run of two stages, the first one finished, on real text."""

import os
from pathlib import Path

import pytest
import yaml

from pretrain import config
from pretrain.checkpoint import mark_done
from pretrain.data.corpus.corpus import Corpus
from tests.unit.tools.runs import Run, save
from tools.prepare_data import main as prepare_data


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    library = Path(os.__file__).parent
    text = "\n\n".join((library / name).read_text() for name in ("argparse.py", "textwrap.py"))
    (folder / "text.txt").write_text(text)
    assert prepare_data([str(folder / "text.txt"), "--output", str(folder / "data"), "--vocab-size", "640"]) == 0
    return Corpus.open(folder / "data")


@pytest.fixture(params=["gqa", "mha"], scope="session")
def run(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    few = next(v for v in range(400, 640) if corpus.tokenizer.age.cut[v])
    groups = 2 if request.param == "gqa" else 4
    model = {"vocab": few, "hidden": 24, "layers": 2, "heads": 4, "kv_heads": groups, "ffn": 40, "head_dim": 8}
    grown = {"vocab": 640, "hidden": 40, "layers": 3, "heads": 6, "kv_heads": groups + groups // 2, "ffn": 56}
    document = {
        "name": "run",
        "seed": 3,
        "output": str(folder),
        "data": {"corpus": str(corpus.path), "window": 16},
        "train": {"tokens": 640, "seq_len": 32, "global_batch": 4, "lr": 1e-3, "precision": "fp32"},
        "stages": [
            {"name": "small", "model": model},
            {"name": "large", "model": {**grown, "head_dim": 8}},
            {"name": "finer", "model": {**grown, "head_dim": 16}},
        ],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    made = Run(config.load(folder / "run.yaml"), corpus)
    stage = made.curriculum.stage("small")
    save(stage, made.parent)
    mark_done(made.parent.parents[1], {"validation_bits_per_byte": 2.5})
    return made
