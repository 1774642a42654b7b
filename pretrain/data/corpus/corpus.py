"""A prepared corpus: a folder of tokens, a tokenizer and a description, as ``tools/prepare_data.py`` writes it.

The tokens are one file (``tokens.bin``) or several, which the description lists (see ``shards``).
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NotRequired, Protocol, Self, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import TypedDict

from pretrain.data.corpus import remote
from pretrain.data.corpus.indexed import AGAIN, IndexedTokens
from pretrain.data.corpus.shards import Shard, ShardedTokens
from pretrain.data.permute import permuted
from pretrain.data.tokenizers.byte_level import ByteLevel, is_byte_level
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import Count
from pretrain.runtime.storage import is_url

TOKENS = "tokens"  # tokens.bin, tokens.idx
TOKENIZER = "tokenizer"
DESCRIPTION = "corpus.json"
FORMAT_VERSION = 1


class AnyTokenizer(Protocol):
    """What the kinds of tokenizers have in common."""

    @property
    def size(self) -> int:
        """How many pieces the full vocabulary has."""

    @property
    def hash(self) -> str:
        """A hash of the pieces and their order, as hex digits."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files to a folder."""


T = TypeVar("T", bound=AnyTokenizer)


@dataclass(frozen=True)
class AnyCorpus(ABC, Generic[T]):
    """Documents encoded with the full vocabulary of ``tokenizer``."""

    path: Path
    tokenizer: T
    tokens: IndexedTokens | ShardedTokens
    description: dict[str, Any]

    @classmethod
    @abstractmethod
    def load_tokenizer(cls, folder: Path) -> T:
        """Loads a tokenizer of the kind that this kind of corpus has."""

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens a folder that was prepared, or a URL to which one was published (see `remote`).

        Raises UserError if it is missing, unfinished or corrupt, or its tokenizer is that of another corpus.
        """
        path = remote.local(str(path)) if is_url(path) else Path(path)
        if not (path / DESCRIPTION).is_file():
            raise UserError(
                f"{path} is not a prepared corpus (it has no {DESCRIPTION}):"
                f" make it with tools/prepare_data.py --output {path}"
            )
        description = _description(path / DESCRIPTION)
        tokenizer = cls.load_tokenizer(path / TOKENIZER)
        if description["tokenizer"] != tokenizer.hash:
            raise UserError(f"{path / TOKENIZER} is not the tokenizer of the tokens of {path}: {AGAIN}")
        shards = description.get("shards")
        tokens = ShardedTokens(path, shards) if shards else IndexedTokens(path / TOKENS)
        if (tokens.documents, tokens.tokens) != (description["documents"], description["tokens"]):
            raise UserError(
                f"{tokens.bin_path.with_suffix('.idx')} has {tokens.documents} documents of {tokens.tokens} tokens,"
                f" but {DESCRIPTION} says {description['documents']} of {description['tokens']}: {AGAIN}"
            )
        return cls(path, tokenizer, tokens, description)

    def read(self, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int32]:
        """The full-vocabulary ids of ranges of the file, one after the other (int32). Raises UserError on bad ids."""
        ids = self.tokens.read(starts, lengths)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.size:
            raise UserError(
                f"{self.tokens.bin_path} is damaged: it has ids beyond the tokenizer's {self.tokenizer.size}: {AGAIN}"
            )
        return ids

    @cached_property
    def hash(self) -> str:
        """A hash of the tokens and the tokenizer, which tells corpora apart whatever their files are called."""
        parts = [self.description[key] for key in ("xxh3_128", "tokenizer", "documents", "tokens")]
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


class _Description(TypedDict):
    """The fields that the description of a corpus must have."""

    documents: Count
    tokens: Count
    bytes: Count
    tokenizer: str
    xxh3_128: str  # of the tokens; of the list of shards where there are several files
    shards: NotRequired[list[Shard]]


def _description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = documents.read(path, documents.Object)
        if description.get("format_version") != FORMAT_VERSION:
            version = documents.show(description.get("format_version"))
            raise UserError(f"{path} has format {version}, not {FORMAT_VERSION}")
        documents.checked(_Description, description, path)
    except UserError as error:
        raise UserError(f"{error}: {AGAIN}") from error
    return description


class Corpus(AnyCorpus[Tokenizer | ByteLevel]):
    """Documents of SentencePiece or byte-level pieces; each ends with its eos."""

    @classmethod
    def load_tokenizer(cls, folder: Path) -> Tokenizer | ByteLevel:
        """Loads a SentencePiece or byte-level tokenizer; UserError if the corpus is one of sentences for BERT."""
        if (folder / "vocab.txt").exists():
            raise UserError(f"{folder.parent} is a corpus of sentences for BERT: prepare one without --wordpiece")
        return ByteLevel.load(folder) if is_byte_level(folder) else Tokenizer.load(folder)


@dataclass(frozen=True)
class Split:
    """Which documents of a corpus are for validation: ``fraction`` of them, at least one, chosen by ``seed`` for ever.

    Raises UserError if that leaves no document to train on.
    """

    documents: int
    fraction: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise UserError(f"the validation fraction is {self.fraction}: it must lie between 0 and 1, both excluded")
        if self.documents - self.validation < 1:
            raise UserError(
                f"the corpus has {self.documents} document(s): too few to hold {self.fraction:.2%} out for validation;"
                " cut it into more documents (tools/prepare_data.py --document paragraph)"
            )

    @property
    def validation(self) -> int:
        """The number of validation documents."""
        return max(1, round(self.documents * self.fraction))

    @property
    def training(self) -> int:
        """The number of training documents."""
        return self.documents - self.validation

    def validation_documents(self, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """The validation documents, in the order in which they are read; of these, the `first` to before the `stop`."""
        last = self.validation if stop is None else min(stop, self.validation)
        return permuted(np.arange(first, last), self.documents, self.seed, "split")

    def training_documents(self, epoch: int, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """The documents at positions (0 to training - 1) of an epoch's permutation."""
        shuffled = permuted(positions, self.training, self.seed, "epoch", epoch)
        return permuted(self.validation + shuffled, self.documents, self.seed, "split")
