"""The benchmark of a pipeline: that it runs on a small text and compares what it says."""

import json
from pathlib import Path

import pytest

from tools.bench import main


def test_bench_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for one process and for two, with the same tokenizer beside both."""
    monkeypatch.syspath_prepend("tools")
    text = Path(json.__file__).read_text()
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text[n::97]}) + "\n" for n in range(97)))
    assert main(["prepare", "--text", str(tmp_path / "text.jsonl"), "--vocab", "420", "--rounds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["workers"] for row in rows] == [1, 2]
    assert rows[0]["speedup"] == 1
    assert all(row["tokenizer"] > 0 < row["pipeline"] for row in rows)
