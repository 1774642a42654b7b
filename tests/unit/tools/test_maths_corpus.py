"""The corpus of problems: the same for a seed, and one line where reasoning-gym is not there."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.maths_corpus import KINDS, TOGETHER, main


def problems(kind: str, size: int, seed: int) -> list[dict[str, str]]:
    """As reasoning-gym gives them."""
    return [{"question": f"{kind} {seed} + {n}?", "answer": str(seed + n)} for n in range(size)]


def test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind in turn, with answers; another seed makes other problems."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=problems))
    made = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([str(tmp_path / name), "--documents", "20", "--seed", seed]) == 0
        made.append((tmp_path / name).read_text())
    assert made[0] == made[1] != made[2]
    rows = [json.loads(line) for line in made[0].splitlines()]
    assert {row["title"].split(",")[0] for row in rows} == set(KINDS)
    assert rows[3]["text"].count("Answer: ") == TOGETHER


def test_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """It is said how it is."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert main([str(tmp_path / "a")]) == 2
    assert "pip install 'cambium[maths]'" in capsys.readouterr().err
