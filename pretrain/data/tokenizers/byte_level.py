"""A byte-level BPE tokenizer from a ``tokenizer.json``, as GPT-2 and LLaMA 3 have it: for models that others trained.

Ids are the tokenizer's own, so it serves at its one size: its vocabulary is neither cut nor grown. Every character of a
piece stands for one byte of text (after the tokenizer's own normalizer, if it has one), and special pieces for none; in
the text itself the names of special pieces are plain characters.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
import xxhash
from numpy.typing import NDArray

from pretrain.data.tokenizers.segmentation import Segmentation
from pretrain.data.tokenizers.sentencepiece import MODEL_FILE
from pretrain.errors import UserError
from pretrain.runtime import documents

JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
LARGEST = 1 << 24  # no id may reach this: there is a table with a row for each


def is_byte_level(path: Path) -> bool:
    """Whether the tokenizer at a path (a folder or a file) is a tokenizer.json and no SentencePiece model."""
    return path.suffix == ".json" or ((path / JSON_FILE).is_file() and not (path / MODEL_FILE).is_file())


class ByteLevel:
    """A byte-level BPE tokenizer of one size; ``ByteLevel.load(folder_or_json)``."""

    prefix_bytes = 0

    def __init__(self, data: bytes, eos: str | int, name: str) -> None:
        """data: the content of a tokenizer.json; eos: the piece that ends a document, or its id; name: what errors call
        it."""
        self.data, self.name = data, name
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
        return cls(data, _eos(file.parent), str(file))

    def save(self, folder: Path) -> None:
        """Write the tokenizer.json, as it is, and a tokenizer_config.json with the end-of-text piece."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_piece,
            "clean_up_tokenization_spaces": False,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        (folder / JSON_FILE).write_bytes(self.data)

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the tokenizer.json and the end-of-text piece."""
        return xxhash.xxh3_128_hexdigest(self.data + b"\0" + self.eos_piece.encode())

    def legal(self, vocab: int) -> None:
        """Raise UserError for a vocabulary that has no row for each piece; rows beyond are never asked for."""
        if vocab < self.size:
            raise UserError(
                f"a vocabulary of {vocab} is not possible with {self.name}: it has {self.size} pieces, and a "
                f"byte-level tokenizer is not cut; use {self.size}"
            )

    def segmentation(self, vocab: int) -> Segmentation:
        """The table that leaves every piece as it is."""
        self.legal(vocab)
        return Segmentation.of(self.size, [])

    def new_pieces(self, old: int, new: int) -> list[list[int]]:
        """Raises UserError, since this vocabulary does not grow."""
        raise UserError(
            f"the vocabulary of {self.name} cannot grow from {old} to {new}: its ids are in no order of age"
        )

    def stock_order(self, vocab: int) -> NDArray[np.int64]:
        """For each row the row of the exported model, which is the same (int64 [vocab])."""
        self.legal(vocab)
        return np.arange(vocab)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without eos."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


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
