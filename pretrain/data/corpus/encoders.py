"""How texts become documents of tokens: SentencePiece or byte-level BPE for LLaMA and GPT, WordPiece for BERT."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import AnyTokenizer
from pretrain.data.corpus.sentences import sentences
from pretrain.data.tokenizers.byte_level import JSON_FILE, LARGEST, ByteLevel
from pretrain.data.tokenizers.sentencepiece import MODEL_FILE, Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer
from pretrain.data.tokenizers.wordpiece import VOCAB_FILE, WordPiece
from pretrain.errors import UserError
from pretrain.runtime import documents

T = TypeVar("T", bound=AnyTokenizer)


@dataclass(frozen=True)
class Encoded:
    """Documents of sequences: all ``tokens`` (int64), ``lengths`` of the sequences in tokens, ``counts`` of the
    documents in sequences, ``bytes`` of text."""

    tokens: NDArray[np.int64]
    lengths: list[int]
    counts: list[int]
    bytes: int


class Encoder(ABC, Generic[T]):
    """A kind of tokenizer, given or to be trained."""

    file: str  # the file of a tokenizer that is written last
    given: T | None
    vocab_size: int

    def check_size(self) -> None:
        """Raise UserError for a vocabulary that cannot be trained."""
        if not self.given and not 1 <= self.vocab_size <= LARGEST:
            raise UserError(f"--vocab-size {self.vocab_size}: a tokenizer has 1 to {LARGEST:,} pieces")

    def request(self) -> dict[str, Any]:
        """What the tokens depend on, for JSON."""
        return {"tokenizer": self.given.hash} if self.given else {"vocab_size": self.vocab_size}

    @abstractmethod
    def load(self, folder: Path) -> T:
        """Loads a tokenizer that was saved in a folder."""

    @abstractmethod
    def train(self, texts: Callable[[], Iterable[str]], threads: int) -> T:
        """Trains a tokenizer of ``vocab_size`` pieces on texts that can be read several times."""

    def check(self, tokenizer: T, texts: Sequence[str]) -> None:
        """Raise UserError if the tokenizer does not do for this text."""

    @abstractmethod
    def encode(self, tokenizer: T, texts: Sequence[str], threads: int) -> Encoded:
        """Encodes texts as documents; a text without tokens gives none."""


class SentencePieceEncoder(Encoder[Tokenizer]):
    """A document is one sequence, and ends with eos."""

    file = MODEL_FILE

    def __init__(self, tokenizer: Path | None = None, vocab_size: int = 32_000) -> None:
        self.given = Tokenizer.load(tokenizer) if tokenizer is not None else None
        self.vocab_size = vocab_size

    def load(self, folder: Path) -> Tokenizer:
        return Tokenizer.load(folder)

    def train(self, texts: Callable[[], Iterable[str]], threads: int) -> Tokenizer:
        return Tokenizer(train_tokenizer(texts(), self.vocab_size, threads), MODEL_FILE)

    def check(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """A model that was not made by BPE training may not nest: compare the table with the truncated tokenizer."""
        legal = np.flatnonzero(tokenizer.age.cut)
        full = [np.array(ids, dtype=np.int32) for ids in tokenizer.processor().encode(list(texts))]
        for vocab in {int(legal[0]), int(legal[len(legal) // 4])}:
            table = tokenizer.segmentation(vocab)
            for ids, expected in zip(full, tokenizer.processor(vocab).encode(list(texts)), strict=True):
                if table.apply(ids).tolist() != expected:
                    raise UserError(
                        f"{tokenizer.name} cannot be grown by merge age: with its first {vocab} pieces this text is cut"
                        " otherwise than its pieces are; leave out --tokenizer to train one that can"
                    )

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str], threads: int) -> Encoded:
        documents = [ids for ids in tokenizer.processor().encode(list(texts), num_threads=threads) if ids]
        tokens, lengths = _ended(documents, tokenizer.eos)
        size = int(tokenizer.piece_bytes[tokens].sum()) - tokenizer.prefix_bytes * len(documents)
        return Encoded(tokens, lengths, [1] * len(documents), size)


class ByteLevelEncoder(Encoder[ByteLevel]):
    """A document is one sequence, and ends with eos."""

    file = JSON_FILE

    def __init__(self, tokenizer: Path, *, by_age: bool = False, added: Sequence[str] = ()) -> None:
        """by_age: with its pieces numbered by age. added: further pieces, behind the rows of the model whose
        config.json lies beside the tokenizer."""
        loaded = ByteLevel.load(tokenizer)
        loaded = loaded.by_age() if by_age else loaded
        self.given = self.tokenizer = loaded.adding(added, model_rows(tokenizer)) if added else loaded
        self.vocab_size = self.tokenizer.size

    def load(self, folder: Path) -> ByteLevel:
        return ByteLevel.load(folder)

    def train(self, texts: Callable[[], Iterable[str]], threads: int) -> ByteLevel:
        """The tokenizer that was given: this kind is not trained."""
        return self.tokenizer

    def encode(self, tokenizer: ByteLevel, texts: Sequence[str], threads: int) -> Encoded:
        documents = [ids for ids in tokenizer.encode_batch(texts) if ids]
        tokens, lengths = _ended(documents, tokenizer.eos)
        size = int(tokenizer.piece_bytes[tokens].sum())
        return Encoded(tokens, lengths, [1] * len(documents), size)


def _ended(documents: Sequence[Sequence[int]], eos: int) -> tuple[NDArray[np.int64], list[int]]:
    """All tokens of documents, each with eos behind it, and how many each has with it."""
    lengths = [len(ids) + 1 for ids in documents]
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    tokens = np.full(sum(lengths), eos, np.int64)
    is_text = np.ones(len(tokens), np.bool_)
    is_text[ends] = False
    tokens[is_text] = np.fromiter(chain.from_iterable(documents), np.int64, len(tokens) - len(lengths))
    return tokens, lengths


def model_rows(tokenizer: Path) -> int:
    """The rows of the vocabulary of the model that a tokenizer came with; 0 where there is no model."""
    config = (tokenizer if tokenizer.is_dir() else tokenizer.parent) / "config.json"
    rows = documents.read(config, documents.Object).get("vocab_size", 0) if config.is_file() else 0
    return rows if type(rows) is int else 0


class WordPieceEncoder(Encoder[WordPiece]):
    """A sequence is a sentence, without special tokens; bytes are those of the sentences."""

    file = VOCAB_FILE

    def __init__(self, vocabulary: Path | None = None, vocab_size: int = 30_522, lowercase: bool = True) -> None:
        self.given = WordPiece.load(vocabulary, lowercase) if vocabulary is not None else None
        self.vocab_size, self.lowercase = vocab_size, lowercase

    def request(self) -> dict[str, Any]:
        return {**super().request(), "wordpiece": {"lowercase": self.lowercase}}

    def load(self, folder: Path) -> WordPiece:
        return WordPiece.load(folder)

    def train(self, texts: Callable[[], Iterable[str]], threads: int) -> WordPiece:
        return WordPiece.train(texts, self.vocab_size, self.lowercase, VOCAB_FILE)

    def encode(self, tokenizer: WordPiece, texts: Sequence[str], threads: int) -> Encoded:
        documents = [sentences(text) for text in texts]
        every_sentence = [sentence for document in documents for sentence in document]
        ids = tokenizer.encode(every_sentence)
        lengths, counts, size, at = [], [], 0, 0
        for document in documents:
            filled = [i for i in range(at, at + len(document)) if ids[i]]
            at += len(document)
            if filled:
                lengths += [len(ids[i]) for i in filled]
                counts.append(len(filled))
                size += sum(len(every_sentence[i].encode()) for i in filled)
        return Encoded(np.array([t for row in ids for t in row], dtype=np.int64), lengths, counts, size)
