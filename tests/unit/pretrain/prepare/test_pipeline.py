"""A pipeline from text to a corpus of shards: what it leaves out, what it says of that, and kills at any moment."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer
from pretrain.errors import UserError
from pretrain.prepare import reading
from pretrain.prepare.keys import load
from pretrain.prepare.rules import make_rules
from pretrain.prepare.run import Job, begin, prepare, run_task
from tests.faults import killing
from tests.unit.pretrain.prepare.planted import alike, plant, shingles
from tests.unit.pretrain.runtime.test_files import Holder

SIMILAR = (1.0, 0.9, 0.7, 0.5)
EACH = 8


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Some 200 pieces of 150 words and more out of the standard library's documentation strings and code."""
    library = Path(os.__file__).parent
    words = " ".join((library / name).read_text() for name in ("argparse.py", "typing.py", "turtle.py")).split()
    return [" ".join(words[at : at + 170]) for at in range(0, 170 * 200, 170)]


@pytest.fixture(scope="module")
def given(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 500 pieces."""
    folder = tmp_path_factory.mktemp("given")
    Tokenizer(train_tokenizer(texts, 500), "test.model").save(folder)
    return folder


def write(folder: Path, texts: list[str], files: int = 3, **keys: object) -> Path:
    """The texts in files, and a pipeline that reads them in three tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = [json.dumps({"text": text}) for text in texts[number::files]]
        (folder / f"text-{number}.jsonl").write_text("\n".join(lines) + "\n")
    pipeline = {
        "output": str(folder / "corpus"),
        "read": {"files": [str(folder / "text-*.jsonl")]},
        "tasks": 3,
        **keys,
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return folder / "pipeline.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a corpus."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def decoded(folder: Path) -> list[str]:
    """The documents of a corpus."""
    corpus = Corpus.open(folder)
    ranges = zip(*corpus.tokens.document_ranges(np.arange(corpus.tokens.documents)), strict=True)
    return [corpus.tokenizer.decode(corpus.read(np.array([s]), np.array([n]))).strip() for s, n in ranges]


def test_duplicates(texts: list[str], given: Path, tmp_path: Path) -> None:
    """Copies go and nothing else does, as an oracle that compares all pairs says."""
    planted, copies = plant(texts, SIMILAR, EACH)
    write(tmp_path, planted, tokens={"tokenizer": str(given), "least": 16})
    description, existed = prepare(Job(tmp_path / "pipeline.yaml"), 1)
    assert not existed
    left = {shingles(text) for text in decoded(tmp_path / "corpus")}
    near = alike(planted, 0.3)
    gone = [number for number, text in enumerate(planted) if shingles(text) not in left]
    measured = {}
    for wanted in SIMILAR:
        pairs = [(c.of, c.number) for c in copies if c.wanted == wanted]
        similarity = [near.get(pair, 0.0) for pair in pairs]
        # Of two that are the same there is one left, whose shingles are those of both.
        found = [pair[0] in gone or pair[1] in gone for pair in pairs]
        measured[wanted] = (sum(similarity) / len(pairs), sum(found) / len(pairs))
    print("wanted: similarity, share that is left out:", measured)
    assert measured[0.9][1] == 1
    assert measured[0.5][1] <= 0.5
    report = json.loads((tmp_path / "corpus/report.json").read_text())["removed"]
    assert report["exact duplicates"]["exact duplicates"]["documents"] == EACH
    alone = {n for n in range(len(planted)) if not any(n in pair for pair in near)}
    assert not alone & set(gone)
    # Every document that is left out is counted by its rule.
    counted = sum(counts["documents"] for reasons in report.values() for counts in reasons.values())
    assert description["documents"] + counted == len(planted)


def test_rules_and_report(texts: list[str], tmp_path: Path) -> None:
    """Each rule is counted with its reasons and samples; a tokenizer is trained on what is left; nothing is fetched."""
    german = "Das Volk hat das Recht, und die Regierung soll sich daran halten, wie es geschrieben steht. " * 20
    (tmp_path / "rules.py").write_text("def keep(text):\n    return 'shouting' if text.isupper() else True\n")
    odd = [german, "LOUD " * 200, "word " * 300, "", "too short to stay"]
    filters = [
        {"language": {"keep": ["en"], "least": 0.0}},
        {"gopher_repetition": {}},
        {"gopher_quality": {"max_symbol_word_ratio": None, "max_non_alpha_words_ratio": 0.2, "min_stop_words": 0}},
        {"python": {"file": str(tmp_path / "rules.py")}},
    ]
    file = write(tmp_path, [*texts[:60], *odd], filters=filters, tokens={"vocab_size": 600, "least": 60})
    with open(tmp_path / "text-0.jsonl", "a") as lines:
        lines.write('{"text": "cut sho\n')
    prepare(Job(file), 2)
    report = json.loads((tmp_path / "corpus/report.json").read_text())
    removed = {rule: set(reasons) for rule, reasons in report["removed"].items()}
    assert removed["read"] == {"no text", "no JSON"}
    assert "de" in removed["1. language"]
    assert any(reason.startswith(("top", "dup")) for reason in removed["2. gopher_repetition"])
    assert "Das Volk" in str(report["removed"]["1. language"]["de"]["samples"])
    assert "| 1. language | de |" in (tmp_path / "corpus/report.md").read_text()
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.tokenizer.size == 600
    assert corpus.tokens.documents == report["left"]["documents"] > 30
    assert prepare(Job(file), 1)[1]


def test_the_same_bytes_in_any_way(texts: list[str], given: Path, tmp_path: Path) -> None:
    """One process, two, or one task at a time; killed twenty times at random lines and begun again."""
    planted, _ = plant(texts, SIMILAR, 4)
    keys = {"tokens": {"tokenizer": str(given)}, "near": {"bands": 4, "rows": 4}}
    file = write(tmp_path, planted, **keys)
    corpus = tmp_path / "corpus"
    prepare(Job(file), 1)
    expected = contents(corpus)
    shutil.rmtree(corpus)
    prepare(Job(file), 2)
    assert contents(corpus) == expected
    shutil.rmtree(corpus)
    job = Job(file)
    job.begin()
    for phase in job.phases:
        for task in reversed(range(phase.tasks)):
            run_task(Job(file), phase.name, task)
    assert contents(corpus) == expected
    shutil.rmtree(corpus)

    def again(_: killing.Say) -> None:
        prepare(Job(file), 1)

    _, lines = killing.run(again, killing.NEVER)
    shutil.rmtree(corpus)
    draw = random.Random(killing.base_seed())
    for _ in range(20):
        killing.run(again, draw.randrange(lines))
    prepare(Job(file), 1)
    assert contents(corpus) == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["corpus"]


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills come at lines of the pipeline and of datatrove's executor."""
    monkeypatch.setattr(killing, "WATCHED", ("/pretrain/prepare/", "/datatrove/executor/", "/runtime/files.py"))
    killing._watched.cache_clear()


def test_parts_of_a_file(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of JSON lines is read in parts by several tasks: every line once, whatever its length."""
    monkeypatch.setattr(reading, "PART", 7000)
    file = write(tmp_path, [*texts[:40], "x" * 9000, *texts[40:80]], files=1)
    job = Job(file)
    parts = reading.parts_of(tmp_path / "text-0.jsonl")
    assert len(parts) > 10
    removed = job.work._removed("read")
    read = [reading.ReadText(job.pipeline.read, job.pipeline.files, removed, tmp_path / "read") for _ in range(7)]
    seen = [document.text for rank, step in enumerate(read) for document in step.run(None, rank, 7)]
    assert sorted(seen) == sorted([*texts[:80], "x" * 9000])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"filters": [{"gopher": {}}]}, r"filters\[0\]: gopher: unknown step, did you mean 'gopher_"),
        ({"filters": [{"c4": {"min_sentences": 3}}]}, r"filters\[0\]\.c4\.min_sentences: unknown key"),
        ({"filters": [{"c4": {"min_num_sentences": "3"}}]}, r"c4\.min_num_sentences: '3' is of another kind"),
        ({"filters": [{"language": {"keep": ["xx"]}}]}, r"filters\[0\]\.language\.keep: no language .*: xx"),
        ({"filters": [{"python": {"file": "absent.py"}}]}, r"python\.file: there is no file 'absent.py'"),
        ({"near": {"band": 3}}, r"near\.band: unknown key, did you mean 'bands'"),
        ({"tasks": 0}, r"tasks: "),
        ({"read": {"files": ["absent-*.jsonl"]}}, r"read\.files\[0\]: there is no file absent-"),
        ({"read": {"files": [__file__]}}, r"the kind is not known by its name"),
        ({"read": {}}, r"read: give either files or a dataset"),
    ],
)
def test_a_file_with_something_wrong(texts: list[str], tmp_path: Path, keys: dict, message: str) -> None:
    """It is said with its place, before anything is made."""
    with pytest.raises(UserError, match=message):
        Job(write(tmp_path, texts[:3], **keys))
    assert not list(tmp_path.glob("corpus*"))


def test_what_stops_it(texts: list[str], given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room, a wrong key of the text, text that is all left out, a file that is cut, another pipeline's output."""
    file = write(tmp_path, texts[:9], tokens={"tokenizer": str(given)}, near={"bands": 0}, exact=False)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
        with pytest.raises(UserError, match=r"0\.0 GB free, and this needs about"):
            prepare(Job(file), 1)
    with pytest.raises(UserError, match="begin it again"):
        run_task(Job(file), "clean", 0)
    prepare(Job(file), 1)
    write(tmp_path, texts[:9], tokens={"tokenizer": str(given), "least": 5})
    with pytest.raises(UserError, match="was prepared from another"):
        prepare(Job(file), 1)
    file = write(tmp_path / "b", texts[:9], read={"files": [str(tmp_path / "text-*.jsonl")], "text": "content"})
    with pytest.raises(UserError, match=r"has no 'content' .it has text.: give read.text"):
        prepare(Job(file), 1)
    file = write(tmp_path / "c", ["short"], files=1, tokens={"tokenizer": str(given)})
    with pytest.raises(UserError, match=r"no document is left: .*report\.md"):
        prepare(Job(file), 1)
    (tmp_path / "text.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    file = write(tmp_path / "d", ["x"], read={"files": [str(tmp_path / "text.jsonl.gz")]})
    with pytest.raises(UserError, match=r"text\.jsonl\.gz: damaged"):
        prepare(Job(file), 1)


def test_what_is_at_work_stays(texts: list[str], given: Path, tmp_path: Path) -> None:
    """Another pipeline's file does not remove what tasks, or all of it here, are writing; nor do both write at once."""
    file = write(tmp_path, texts[:9], tokens={"tokenizer": str(given)})
    begin(Job(file))
    locks = tmp_path / "corpus.partial/work/locks"
    locks.mkdir()
    task = Holder(locks / "clean-0", os.uname().nodename)
    begin(Job(file))
    with pytest.raises(UserError, match=r"locks: process 7 on .* writes here"):
        prepare(Job(file), 1)
    write(tmp_path, texts[:9], tokens={"tokenizer": str(given), "least": 5})
    with pytest.raises(UserError, match=r"locks: process 7 on .* writes here"):
        begin(Job(file))
    task.stop()
    (tmp_path / "corpus.partial/lock").unlink()
    whole = Holder(tmp_path / "corpus.partial/lock", os.uname().nodename)
    with pytest.raises(UserError, match=r"corpus\.partial: process 7 on .* writes here"):
        begin(Job(file))
    whole.stop()
    begin(Job(file))
    assert not any(locks.glob("*"))


def test_kinds_of_files(tmp_path: Path) -> None:
    """Parquet by row groups, and WARC: text of a page, and of a WET record as it is."""
    import gzip
    from io import BytesIO

    import pyarrow
    import pyarrow.parquet
    from fastwarc.warc import WarcRecord, WarcRecordType

    table = pyarrow.table({"content": [f"row {n}" for n in range(10)] + [None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    raw = BytesIO()
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>A page &amp; its text.</p></body></html>"
    for kind, content in ((WarcRecordType.response, page), (WarcRecordType.conversion, b"Plain text.")):
        record = WarcRecord()
        record.init_headers(kind)
        if kind == WarcRecordType.response:
            record.headers["Content-Type"] = "application/http; msgtype=response"
        record.set_bytes_content(content)
        record.write(raw)
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(raw.getvalue()))
    keys = {"read": {"files": [str(tmp_path / "a.parquet"), str(tmp_path / "b.warc.gz")], "text": "content"}}
    job = Job(write(tmp_path, ["x"], **keys))
    removed = job.work._removed("read")
    texts = [
        document.text
        for rank in range(2)
        for document in reading.ReadText(job.pipeline.read, job.pipeline.files, removed, tmp_path / "r").run(
            None, rank, 2
        )
    ]
    assert sorted(texts) == sorted([f"row {n}" for n in range(10)] + ["A page & its text.", "Plain text."])


def test_a_data_set(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are shared out among tasks; a name that cannot be had is said in one line."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts[:10]))
    keys = {"read": {"dataset": str(tmp_path / "data"), "text": "content"}}
    job = Job(write(tmp_path, ["x"], **keys))
    removed = job.work._removed("read")
    read = [reading.ReadText(job.pipeline.read, [], removed, tmp_path / "read").run(None, rank, 3) for rank in range(3)]
    assert [document.text for part in read for document in part] == texts[:10]
    with pytest.raises(UserError, match=r"read\.dataset: absent/absent cannot be had"):
        Job(write(tmp_path, ["x"], read={"dataset": "absent/absent"})).begin()


@pytest.mark.parametrize("name", ["maths_college", "open_web_math"])
def test_pipelines_of_maths(name: str) -> None:
    """Their keys and rules are known."""
    file = Path(__file__).parents[4] / f"configs/maths/{name}.yaml"
    pipeline = load(file)
    assert make_rules(pipeline.filters, Path(), 1, str(file))
    assert pipeline.tokens.least == 128
