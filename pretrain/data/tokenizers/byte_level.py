"""A byte-level BPE tokenizer from a ``tokenizer.json``, as GPT-2 and LLaMA 3 have it: for models that others trained.

Ids are the tokenizer's own. Where they are in the order of age (see ``nested_bpe``) its first pieces serve a stage, and
``by_age`` is the same tokenizer with such ids; else it serves at its one size, and at those of what a user has added to
it (``adding``). Every character of a
piece stands for one byte of text (after the tokenizer's own normalizer, if it has one), and special pieces for none; in
the text itself the names of special pieces are plain characters.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
import xxhash
from numpy.typing import NDArray
from typing_extensions import TypedDict

from pretrain.data.tokenizers.nested_bpe import Bpe, by_age, cut_off
from pretrain.data.tokenizers.segmentation import Base, GrowingVocabulary, Segmentation
from pretrain.data.tokenizers.sentencepiece import MODEL_FILE
from pretrain.errors import UserError
from pretrain.runtime import documents

JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
LARGEST = 1 << 24  # no id may reach this: there is a table with a row for each


def is_byte_level(path: Path) -> bool:
    """Whether the tokenizer at a path (a folder or a file) is a tokenizer.json and no SentencePiece model."""
    return path.suffix == ".json" or ((path / JSON_FILE).is_file() and not (path / MODEL_FILE).is_file())


class ByteLevel(GrowingVocabulary):
    """A byte-level BPE tokenizer; ``ByteLevel.load(folder_or_json)``."""

    prefix_bytes = 0

    def __init__(self, data: bytes, eos: str | int, name: str, base: Base | None = None) -> None:
        """data: the content of a tokenizer.json; eos: the piece that ends a document, or its id; name: what errors call
        it; base: what pieces were added to."""
        super().__init__()
        self.data, self.name, self.base = data, name, base
        content = documents.checked(documents.Object, documents.parse(data, name), name)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except BaseException as error:  # the library raises Exception itself, and PanicException, which is none
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise UserError(f"{name} is no tokenizer.json ({documents.one_line(str(error))})") from error
        _check_supported(content, name)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        if not 0 < len(pieces) <= max(pieces.values()) + 1 <= LARGEST:
            raise UserError(f"{name} has {len(pieces)} pieces with ids up to {max(pieces.values(), default=0)}")
        piece = self._tokenizer.id_to_token(eos) if isinstance(eos, int) else eos
        if piece not in pieces:
            raise UserError(f"{name} has no end-of-text piece {documents.show(eos)}: documents could not be told apart")
        self.size = max(pieces.values()) + 1
        self.permutation = np.arange(self.size, dtype=np.int32)
        self.eos_piece, self.eos = piece, pieces[piece]
        self.piece_bytes: NDArray[np.int32] = np.zeros(self.size, dtype=np.int32)
        for piece, i in pieces.items():
            self.piece_bytes[i] = len(piece)
        for i, added in self._tokenizer.get_added_tokens_decoder().items():
            self.piece_bytes[i] = 0 if added.special else len(added.content.encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Loads a tokenizer.json or its folder; the end-of-text piece is what the files beside it say.

        Raises UserError if it is missing, is no byte-level BPE, or nothing says which piece ends a text.
        """
        path = Path(path)
        file = path / JSON_FILE if path.is_dir() else path
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {file}: {error.strerror}") from error
        return cls(data, _eos(file.parent), str(file), _base(file.parent))

    def by_age(self) -> "ByteLevel":
        """The same tokenizer with its pieces in the order of their age."""
        aged = json.dumps(by_age(json.loads(self.data)), ensure_ascii=False)
        return ByteLevel(aged.encode(), self.eos_piece, self.name)

    def adding(self, tokens: Sequence[str], rows: int) -> "ByteLevel":
        """The same tokenizer with further pieces, which are found in a text before it is cut. A model of it has so many
        rows: up to these there are pieces that are never used. Raises UserError for what is a piece already."""
        known = set(self._tokenizer.get_vocab(with_added_tokens=True))
        for token in tokens:
            if not token or token in known:
                raise UserError(f"the token {documents.show(token)} cannot be added to {self.name}: it has it already")
            known.add(token)
        more = tokenizers.Tokenizer.from_str(self.data.decode())
        unused = [f"<|unused-{i}|>" for i in range(self.size, rows)]
        more.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in unused])
        more.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in tokens])
        return ByteLevel(more.to_str().encode(), self.eos_piece, self.name, Base(self.hash, max(rows, self.size)))

    def _first(self, vocab: int) -> bytes:
        """The tokenizer.json of the first pieces."""
        self.legal(vocab)
        content = json.loads(self.data)
        if self._adds(vocab):
            content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocab]
        else:
            content = cut_off(content, vocab)
        return json.dumps(content, ensure_ascii=False).encode()

    def _adds(self, vocab: int) -> bool:
        """Whether all pieces from here on were added by a user."""
        return self.base is not None and vocab >= self.base.rows

    @cached_property
    def _bpe(self) -> Bpe:
        bpe = Bpe.of(json.loads(self.data))
        given = self._tokenizer.get_vocab(with_added_tokens=True)
        if odd := sorted({**bpe.pieces, **bpe.added}.items() ^ given.items()):
            raise UserError(f"{self.name} gives the piece {documents.show(odd[0][0])} another id than it comes to have")
        return bpe

    def save(self, folder: Path, vocab: int | None = None) -> None:
        """Write the tokenizer.json, as it is or of the first ``vocab`` pieces, and a tokenizer_config.json with the
        end-of-text piece. Raises UserError for a vocabulary that is not legal."""
        data = self.data
        if vocab is not None and vocab < self.size:
            data = self._first(vocab)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_piece,
            "clean_up_tokenization_spaces": False,
        }
        if self.base:
            config["extends"] = asdict(self.base)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        (folder / JSON_FILE).write_bytes(data)

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the tokenizer.json and the end-of-text piece."""
        return xxhash.xxh3_128_hexdigest(self.data + b"\0" + self.eos_piece.encode())

    def legal(self, vocab: int) -> None:
        """Raise UserError, naming the nearest legal sizes, unless the first ``vocab`` pieces are a tokenizer. There may
        be more rows than pieces: they are never asked for."""
        if vocab >= self.size or self._adds(vocab) or (vocab >= 0 and self._bpe.cut[vocab]):
            return
        sizes = np.flatnonzero(self._bpe.cut)
        near = [*sizes[sizes < vocab][-1:], *sizes[sizes > vocab][:1]]
        how = "" if len(sizes) > 1 else ", or number its pieces by age, with tools/prepare_data.py --by-age"
        raise UserError(
            f"a vocabulary of {vocab} is not possible with {self.name}: it has {self.size} pieces, and a byte-level "
            f"tokenizer is not cut where special pieces, bytes or earlier merges would be lost; use "
            f"{' or '.join(map(str, near)) or self.size}{how}"
        )

    def spellings(self, vocab: int) -> list[list[int]]:
        if not self._adds(vocab):
            return self._bpe.spellings(vocab)
        older = ByteLevel(self._first(vocab), self.eos_piece, self.name)
        added = self._tokenizer.get_added_tokens_decoder()
        return older.encode_batch([added[i].content for i in range(vocab, self.size)])

    def segmentation(self, vocab: int) -> Segmentation:
        """The table that spells full-vocabulary ids with the first ``vocab`` pieces, or leaves every piece as it is."""
        self.legal(vocab)
        return super().segmentation(min(vocab, self.size))

    def new_pieces(self, old: int, new: int) -> list[list[int]]:
        """For each row of the vocabulary from ``old`` to ``new``, the rows below ``old`` that its text was made of.
        Raises UserError where there are fewer pieces."""
        if new > self.size:
            raise UserError(f"the vocabulary of {self.name} cannot grow from {old} to {new}: it has {self.size} pieces")
        return super().new_pieces(old, new)

    def stock_order(self, vocab: int) -> NDArray[np.int64]:
        """For each row the row of the exported model, which is the same (int64 [vocab])."""
        self.legal(vocab)
        return np.arange(vocab)

    def encode(self, text: str, vocab: int | None = None) -> NDArray[np.int32]:
        """The ids of a text among the first ``vocab`` pieces (default: all), without eos."""
        ids = np.array(self.encode_batch([text])[0], dtype=np.int32)
        return ids if vocab is None else self.segmentation(vocab).apply(ids)

    def decode(self, ids: NDArray[np.integer] | list[int]) -> str:
        """The text that ids of any stage stand for."""
        text: str = self._tokenizer.decode([int(i) for i in ids])
        return text

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without eos."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _base(folder: Path) -> Base | None:
    """What a tokenizer that `save` has written adds to."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    said = documents.read(folder / CONFIG_FILE, documents.Object).get("extends")
    return Base(**documents.checked(Said, said, str(folder / CONFIG_FILE))) if said else None


class Said(TypedDict):
    """The key `extends` of tokenizer_config.json."""

    hash: str
    rows: int


def _check_supported(content: dict[str, Any], name: str) -> None:
    before, after = (list(_parts(_object(content.get(key)))) for key in ("pre_tokenizer", "decoder"))
    problems = {
        "it is no BPE": _object(content.get("model")).get("type") != "BPE",
        "its pieces are not of bytes": not any(part.get("type") == "ByteLevel" for part in after),
        "it puts a space before the text": any(part.get("add_prefix_space") for part in before),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise UserError(f"{name} cannot be used: {problem}; a SentencePiece BPE or a byte-level BPE can")


def _parts(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the steps of a sequence of steps, or the one step."""
    if step:
        yield step
        for key in ("pretokenizers", "decoders"):
            for inner in step[key] if isinstance(step.get(key), list) else ():
                yield from _parts(_object(inner))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _eos(folder: Path) -> str | int:
    """The end-of-text piece or its id, from the first file that names it."""
    for name in (CONFIG_FILE, "special_tokens_map.json", "generation_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        content = documents.read(folder / name, documents.Object)
        piece, number = content.get("eos_token"), content.get("eos_token_id")
        if isinstance(piece, dict):
            piece = piece.get("content")
        if isinstance(number, list) and number:
            number = number[0]
        for eos in (piece, number):
            if isinstance(eos, str) or (type(eos) is int and 0 <= eos < LARGEST):
                return eos
    raise UserError(f"{folder}: no file says which piece ends a text (eos_token in {CONFIG_FILE})")
