"""The benchmark of data: that it runs on a small text and compares what it says."""

import argparse
import json
from pathlib import Path

import pytest

from tools.bench import main


def test_bench_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of samples, of one corpus and of a mixture, figures of both sides, and their ratio."""
    monkeypatch.syspath_prepend("tools")
    (tmp_path / "text.txt").write_text(Path(argparse.__file__).read_text())
    sizes = ["--vocab", "400", "--batch", "4", "--rounds", "2", "--seq-len", "32"]
    assert main(["data", "--text", str(tmp_path / "text.txt"), *sizes, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["samples"].split(":")[0] for row in rows] == ["BERT", "text"] * 2
    for row in rows:
        assert row["ratio"] == pytest.approx(row["Cambium"] / row["Megatron-core"])
