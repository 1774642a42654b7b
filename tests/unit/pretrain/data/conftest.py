"""Real text, a tokenizer trained on it, and a corpus, made once a session."""

import json
import os
from pathlib import Path

import pytest

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer

STRANGE = [
    "naïve café ﬀ \u2581 \u00a0 x",
    "日本語のテキスト 😀😀",
    "  spaces   kept  ",
    "tab\tand\nnewline\n",
    "0x1234567",
    "\u0000",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 200 documents, 2 to 3,000 bytes each: modules of the standard library by paragraphs, and strange ones."""
    library = Path(os.__file__).parent
    paragraphs = []
    for name in ("argparse.py", "pathlib.py", "textwrap.py"):
        paragraphs += (library / name).read_text().split("\n\n")
    return [p for p in paragraphs if p.strip()][:250] + STRANGE


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    """1,200 pieces, byte fallback."""
    return Tokenizer(train_tokenizer(texts, 1200), "test.model")


@pytest.fixture(scope="session")
def corpus_path(texts: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of ``texts``."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer.save(folder / "given")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(Source((folder / "texts.jsonl",)), folder / "corpus", SentencePieceEncoder(folder / "given"))
    return folder / "corpus"


@pytest.fixture(scope="session")
def corpus(corpus_path: Path) -> Corpus:
    """The same, open."""
    return Corpus.open(corpus_path)
