"""BERT's WordPiece, whose first V pieces are the vocabulary of a stage.

WordPiece is greedy, longest match first, so a truncated vocabulary cuts words otherwise than the full one's pieces are
cut. A stage's tokenizer is therefore *defined* as: encode with the full vocabulary, then replace each piece that the
stage does not have by the stage's pieces that spell it (greedily too). This holds in training and in use.

Ids are in the order of growth: [PAD] [UNK] [CLS] [SEP] [MASK]; ASCII characters and other signs; longer pieces in the
order of the vocabulary file (by frequency), each preceded by the characters that it first needs; other characters;
[unused*].
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece as Model
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from typing_extensions import TypedDict

from pretrain.data.tokenizers.segmentation import GrowingVocabulary
from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.files import write_file

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = 1000  # characters of a trained vocabulary; others are unknown
UNUSED = re.compile(r"\[unused\d+\]")
VOCAB_FILE = "vocab.txt"
OPTIONS_FILE = "wordpiece.json"


class Options(TypedDict):
    """The options file that is saved beside the vocabulary."""

    lowercase: bool


class WordPiece(GrowingVocabulary):
    """A WordPiece tokenizer with its pieces in the order of growth; ``WordPiece.load(folder_or_vocab_file)``."""

    def __init__(self, vocabulary: Sequence[str], lowercase: bool, name: str) -> None:
        """``vocabulary`` are the lines of a vocab.txt; ``name`` is what errors call it.

        Raises UserError if a special piece is missing or a piece is there twice.
        """
        super().__init__()
        missing = [piece for piece in SPECIALS if piece not in vocabulary]
        if missing:
            raise UserError(f"{name} has no {', '.join(missing)}: BERT cannot be trained with it")
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError(f"{name} has a piece twice")
        self.stock, self.lowercase, self.name = list(vocabulary), lowercase, name
        self.size = len(self.stock)
        self.permutation, self.least = _growth_order(self.stock)
        self.pieces = [self.stock[i] for i in self.permutation]
        self.pad, self.unk, self.cls, self.sep, self.mask = range(len(SPECIALS))
        self.used = self.size - sum(bool(UNUSED.fullmatch(piece)) for piece in self.pieces)
        self.continues: NDArray[np.bool_] = np.array([_is_continuation(piece) for piece in self.pieces])

    @classmethod
    def load(cls, path: Path | str, lowercase: bool = True) -> Self:
        """Loads a vocab.txt, or a folder as ``save`` writes it (which knows about ``lowercase`` itself)."""
        path = Path(path)
        file = path / VOCAB_FILE if path.is_dir() else path
        if path.is_dir() and (path / OPTIONS_FILE).exists():
            lowercase = documents.read(path / OPTIONS_FILE, Options)["lowercase"]
        try:
            return cls(file.read_text(encoding="utf-8").splitlines(), lowercase, str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the vocabulary {file}: {error}") from error

    @classmethod
    def train(cls, texts: Callable[[], Iterable[str]], vocab_size: int, lowercase: bool, name: str) -> Self:
        """Learn ``vocab_size`` pieces from texts, which are read twice.

        Raises UserError if the texts have too few different words for so many.
        """
        fast = _fast({}, lowercase)
        alphabet = _alphabet(texts(), fast.normalizer)
        trainer = WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            limit_alphabet=len(alphabet),
            initial_alphabet=alphabet,
            # The trainer breaks ties by id, and gives ids to characters inside of words in the order of a hash table.
            # Giving them here makes the vocabulary a function of the text.
            special_tokens=[*SPECIALS, *alphabet, *(f"##{c}" for c in alphabet if not _is_punctuation(c))],
            continuing_subword_prefix="##",
            show_progress=False,
        )
        fast.train_from_iterator(iter(texts()), trainer)
        ids = fast.get_vocab()
        if len(ids) > vocab_size:
            raise UserError(f"specials and characters of this text alone are {len(ids)} pieces: give a --vocab-size")
        if len(ids) < vocab_size:
            raise UserError(
                f"this text has enough different words for {len(ids)} pieces, not for {vocab_size}: give --vocab-size"
            )
        return cls(sorted(ids, key=ids.__getitem__), lowercase, name)

    def save(self, folder: Path) -> None:
        """Write vocab.txt in the stock order, and the options."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OPTIONS_FILE).write_text(json.dumps({"format_version": 1, "lowercase": self.lowercase}) + "\n")
        write_file(folder / VOCAB_FILE, ("\n".join(self.stock) + "\n").encode())

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the pieces in order, and the options."""
        return xxhash.xxh3_128_hexdigest(json.dumps([self.pieces, self.lowercase]).encode())

    def legal(self, vocab: int) -> None:
        """Raise UserError unless the first ``vocab`` pieces can be a stage's."""
        if not self.least <= vocab <= self.size:
            raise UserError(
                f"a vocabulary of {vocab} is not possible with {self.name}: specials, ASCII and other signs alone are"
                f" {self.least}, all pieces {self.size}; use a number from {self.least} to {self.size}"
            )

    def replaceable(self, vocab: int) -> tuple[int, int]:
        """First and one past the last id that a random replacement may be: active in the stage, no special, in use."""
        return len(SPECIALS), min(vocab, self.used)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The full-vocabulary ids of each text, without [CLS] and [SEP]."""
        return [encoding.ids for encoding in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids of any stage, as far as WordPiece keeps it."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=False)

    def spellings(self, vocab: int) -> list[list[int]]:
        """Of each piece from ``vocab`` on, greedily, as WordPiece does."""
        ids = {piece: i for i, piece in enumerate(self.pieces[:vocab])}
        return [_spell(piece, ids, self.unk) for piece in self.pieces[vocab:]]

    @cached_property
    def _fast(self) -> Tokenizer:
        return _fast({piece: i for i, piece in enumerate(self.pieces)}, self.lowercase)


def _fast(ids: dict[str, int], lowercase: bool) -> Tokenizer:
    fast = Tokenizer(Model(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    fast.normalizer = BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast


def _alphabet(texts: Iterable[str], normalizer: BertNormalizer) -> list[str]:
    """The most frequent characters of words, in their own order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    by_frequency = sorted((-n, c) for c, n in counts.items() if not c.isspace())
    return sorted(c for _, c in by_frequency[:ALPHABET])


def _is_punctuation(character: str) -> bool:
    """Whether BERT makes the character a word of its own."""
    return (character.isascii() and not character.isalnum()) or unicodedata.category(character).startswith("P")


def _is_continuation(piece: str) -> bool:
    return piece.startswith("##") and len(piece) > 2


def _characters(piece: str) -> list[str]:
    """The one-character pieces that spell a piece."""
    if _is_continuation(piece):
        return [f"##{c}" for c in piece[2:]]
    return [c if i == 0 else f"##{c}" for i, c in enumerate(piece)]


def _growth_order(stock: Sequence[str]) -> tuple[NDArray[np.int32], int]:
    """The stock ids in the order of growth, and how many of them every stage has."""
    ids = {piece: i for i, piece in enumerate(stock)}
    first = [ids[piece] for piece in SPECIALS]
    characters, longer, unused = {}, [], []
    for i, piece in enumerate(stock):
        if piece in SPECIALS:
            continue
        if UNUSED.fullmatch(piece):
            unused.append(i)
        elif _characters(piece) == [piece]:
            # No piece is made of these, and without one its sign would be unknown to a stage.
            if piece.isascii() or unicodedata.category(piece[-1])[0] in "PS":
                first.append(i)
            else:
                characters[piece] = i
        else:
            longer.append(i)
    least = len(first)
    order = first
    for i in longer:
        order += [characters.pop(c) for c in _characters(stock[i]) if c in characters]
        order.append(i)
    return np.array([*order, *characters.values(), *unused], dtype=np.int32), least


def _spell(piece: str, ids: dict[str, int], unknown: int) -> list[int]:
    """The ids that spell a piece with the pieces in ``ids``, longest match first; [UNK] if they cannot."""
    prefix, text = ("##", piece[2:]) if _is_continuation(piece) else ("", piece)
    spelling: list[int] = []
    while text:
        length = next((n for n in range(len(text), 0, -1) if prefix + text[:n] in ids), 0)
        if not length:
            return [unknown]
        spelling.append(ids[prefix + text[:length]])
        prefix, text = "##", text[length:]
    return spelling
