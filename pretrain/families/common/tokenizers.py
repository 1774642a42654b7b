"""The kinds of tokenizers that families have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.tokenizers import sentencepiece, wordpiece
from pretrain.data.tokenizers.byte_level import ByteLevel, is_byte_level
from pretrain.data.tokenizers.sentencepiece import Tokenizer as SentencePiece
from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.families.common.hf.values import TokenizerConfig
from pretrain.runtime import documents

Tokenizer = SentencePiece | ByteLevel | WordPiece


@dataclass(frozen=True)
class Kind:
    """A tokenizer whose rows can be put into the order of their age: name, for people; file, in a folder that holds
    one; load, from such a folder. byte_level: whether a model of the family may have a byte-level one instead, whose
    rows keep the order of their ids."""

    name: str
    file: str
    load: Callable[[Path], SentencePiece | WordPiece]
    byte_level: bool

    def any(self, path: Path) -> Tokenizer:
        """The tokenizer in a folder or file. Raises UserError when there is none."""
        return ByteLevel.load(path) if self.is_byte_level(path) else self.load(path)

    def is_byte_level(self, path: Path) -> bool:
        """Whether it is one that the family may have as it is."""
        return self.byte_level and is_byte_level(path)


def _lowercase(folder: Path) -> bool:
    """Whether a WordPiece tokenizer's folder says that text loses its capitals; without a word about it, it does."""
    config = folder / "tokenizer_config.json"
    said = documents.read(config, TokenizerConfig).get("do_lower_case") if config.is_file() else None
    return True if said is None else bool(said)


SENTENCE_PIECE = Kind("SentencePiece model", sentencepiece.MODEL_FILE, SentencePiece.load, byte_level=True)
WORD_PIECE = Kind(
    "WordPiece vocabulary",
    wordpiece.VOCAB_FILE,
    lambda path: WordPiece.load(path, _lowercase(path)),
    byte_level=False,
)
