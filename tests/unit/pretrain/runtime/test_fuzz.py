"""What lies in the folder of a stage and in that of a corpus, as damage and strangers leave it.

It is read as it is, or refused in one line, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pretrain.data.corpus.corpus import AnyCorpus, Corpus
from pretrain.data.corpus.encoders import SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.families.bert.stream import BertCorpus
from pretrain.report import comparison, history, plot
from pretrain.runtime import documents
from pretrain.runtime.files import bits_per_byte, mark_done
from pretrain.schedule.ending import keep_decision, read_trial
from pretrain.stage import metrics
from tests import mutations
from tests.unit.tools.run_folder import make_run
from tools import compare, report

QUICK, MANY = range(60), range(1000, 11_000)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"))
    mark_done(folder / "seed", {"validation_bits_per_byte": 2.5, "tokens": 6000})
    tried = [{"candidate": {"layers": "stack"}, "loss_at_once": 3.0, "loss": None, "flops": 1e9, "seconds": 2.0}]
    config = yaml.safe_load((folder / "wide" / "config.yaml").read_text())
    keep_decision(folder / "wide", "trial", {"parent": "0" * 32, "config": config, "tried": tried, "chosen": None})
    return folder


def reported(run: Path) -> None:
    """All that a report and a comparison say of a run, but for the pictures."""
    stages = history.load(run)
    report.markdown("run", stages, ["text"])
    documents.parse(json.dumps(documents.finite(report.event_rows(stages))).encode(), "the events")
    plot.points(stages)
    lines = comparison.lines([run])
    metric = comparison.common_metric(lines)
    target = comparison.target(lines, metric)
    compare.markdown(comparison.rows(lines, metric), metric, target)


def mutated(path: Path, seed: int, data: bytes) -> bytes:
    """Of JSON, of a line of JSON lines, or of bytes."""
    if path.suffix == ".jsonl" and seed % 4:
        lines = data.splitlines()
        at = seed % len(lines)
        lines[at] = mutations.of_json(json.loads(lines[at]), seed)
        return b"\n".join(lines) + b"\n"
    if path.suffix == ".yaml" and seed % 4:
        return mutations.of_json(yaml.safe_load(data), seed)  # which is YAML too
    if path.suffix == ".json" or path.name == "DONE":
        return mutations.of_json(json.loads(data), seed)
    return mutations.of_bytes(data, seed)


def fuzz(path: Path, read: Callable[[], object], seeds: range) -> None:
    root, data = path.parent.parent, path.read_bytes()
    read()
    before = set(mutations.files_of(root))
    try:
        for seed in seeds:
            path.write_bytes(mutated(path, seed, data))
            mutations.refused(read, seed)
    finally:
        path.write_bytes(data)
    assert set(mutations.files_of(root)) == before


OF_A_RUN: dict[str, Callable[[Path], object]] = {
    "wide/metrics.jsonl": reported,
    "wide/config.yaml": reported,
    "wide/events/step-00000000.json": reported,
    "seed/DONE": lambda run: bits_per_byte(run / "seed"),
    "wide/decisions/trial.json": lambda run: read_trial(run / "wide"),
}


@pytest.mark.parametrize("name", OF_A_RUN)
def test_folders_of_stages(run: Path, name: str) -> None:
    fuzz(run / name, lambda: OF_A_RUN[name](run), QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OF_A_RUN)
def test_many_folders_of_stages(run: Path, name: str) -> None:
    fuzz(run / name, lambda: OF_A_RUN[name](run), MANY)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    text = [f"This is sentence {n}. It has another one after it, of the {n}th document." for n in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    source = Source((folder / "text.jsonl",))
    prepare(source, folder / "pieces", SentencePieceEncoder(None, 365))
    prepare(source, folder / "words", WordPieceEncoder(None, 80))
    return {"pieces": folder / "pieces", "words": folder / "words"}


def every_document(folder: Path) -> None:
    kind: type[AnyCorpus[Any]] = BertCorpus if folder.name == "words" else Corpus
    corpus = kind.open(folder)
    assert corpus.hash
    for document in range(min(corpus.tokens.documents, 50)):
        corpus.read(*corpus.tokens.document_ranges(np.array([document])))


OF_A_CORPUS = [
    ("pieces", "corpus.json"),
    ("pieces", "tokens.idx"),
    ("pieces", "tokens.bin"),
    ("pieces", "tokenizer/merge_age.json"),
    ("pieces", "tokenizer/tokenizer.model"),
    ("words", "tokens.idx"),
    ("words", "tokenizer/wordpiece.json"),
    ("words", "tokenizer/vocab.txt"),
]


@pytest.mark.parametrize(("corpus", "name"), OF_A_CORPUS)
def test_corpora(corpora: dict[str, Path], corpus: str, name: str) -> None:
    fuzz(corpora[corpus] / name, lambda: every_document(corpora[corpus]), QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("corpus", "name"), OF_A_CORPUS)
def test_many_corpora(corpora: dict[str, Path], corpus: str, name: str) -> None:
    fuzz(corpora[corpus] / name, lambda: every_document(corpora[corpus]), MANY)


@pytest.mark.parametrize("records", [["[1]"], ["null"], ['{"step": 1}'], ['{"step": true}'], ['{"a": 1}']])
def test_records_that_are_none(records: list[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(records))
    assert mutations.refused(lambda: list(metrics.read(tmp_path / "metrics.jsonl")), 0)
