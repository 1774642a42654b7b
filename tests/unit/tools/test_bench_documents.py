"""What a rank needs to read a corpus does not grow with its documents: the small version of `bench.py documents`."""

from pathlib import Path

import pytest

from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer


def test_memory_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("tools")
    from benchmarks.documents import VOCAB, measure, sparse

    tokenizer = Tokenizer(train_tokenizer([f"{n:b} is the number {n}" for n in range(400)], VOCAB), "numbers")
    sparse(tmp_path / "few", tokenizer, 2000, 1000)
    sparse(tmp_path / "many", tokenizer, 400_000, 100_000)
    measure(tmp_path / "few")  # imports what is only imported now
    few, many = (measure(tmp_path / name)["peak_MB"] for name in ("few", "many"))
    assert many < few + 0.5
