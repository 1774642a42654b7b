"""A SentencePiece BPE tokenizer whose first V pieces are the tokenizer of a stage.

Ids are in merge-age order everywhere in Cambium but in an exported model; see ``merge_age``. Text is encoded once, with
the full vocabulary; a stage of V pieces re-segments the ids by a table (``Segmentation``).

Bytes. ``piece_bytes`` counts the UTF-8 bytes of text that a piece stands for: 1 for a byte piece, 0 for a special one,
and the space mark counts as the one space it stands for. SentencePiece starts every text with a space mark that is not
in the text (the dummy prefix), so a text's length in UTF-8 is the sum over its ids minus ``prefix_bytes``. (A U+2581
in the text itself is a space to SentencePiece, and counted as one.)
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as spm
from typing_extensions import TypedDict

from pretrain.data.tokenizers.merge_age import SPACE, MergeAge, Piece, merge_age
from pretrain.data.tokenizers.segmentation import GrowingVocabulary
from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.files import write_file

MODEL_FILE = "tokenizer.model"
ORDER_FILE = "merge_age.json"


class Order(TypedDict):
    """The file beside a saved model that says in which order its pieces grow."""

    hash: str


class Tokenizer(GrowingVocabulary):
    """A SentencePiece tokenizer with ids in merge-age order; ``Tokenizer.load(folder_or_model_file)``.

    It encodes with the full vocabulary unless a smaller one is asked for.
    """

    def __init__(self, model: bytes, name: str) -> None:
        """``model`` is the content of a SentencePiece model file; ``name`` is what errors call it."""
        super().__init__()
        self.model_bytes = model
        self.stock = spm.ModelProto()
        try:
            self.stock.ParseFromString(model)
        except Exception as error:  # protobuf's DecodeError has no stable home
            raise UserError(f"{name} is not a SentencePiece model: {error}") from error
        texts = (piece.piece for piece in self.stock.pieces)
        if damaged := [text for text in texts if not isinstance(text, str)]:  # protobuf gives it as bytes
            raise UserError(f"{name} is damaged: the piece {documents.show(damaged[0])} is no UTF-8 text")
        _check_supported(self.stock, name)
        self.name = name
        self.size = len(self.stock.pieces)
        self.age: MergeAge = merge_age(self.stock.pieces)
        self.permutation = self.age.permutation
        self.pieces: list[str] = [self.stock.pieces[i].piece for i in self.permutation]
        self._processors: dict[tuple[int, bool], SentencePieceProcessor] = {}

        ids = {piece: i for i, piece in enumerate(self.pieces)}
        trainer = self.stock.trainer_spec
        self.bos: int | None = ids.get(trainer.bos_piece)
        eos = ids.get(trainer.eos_piece)
        if eos is None:
            raise UserError(f"{name} has no end-of-text piece {trainer.eos_piece!r}: documents could not be told apart")
        self.eos: int = eos
        self.unk: int = ids[next(p.piece for p in self.stock.pieces if p.type == Piece.UNKNOWN)]
        self.prefix_bytes = int(self.stock.normalizer_spec.add_dummy_prefix)
        # uint8 would do for most vocabularies, but sums of int32 do not overflow.
        self.piece_bytes: NDArray[np.int32] = np.array(
            [_text_bytes(self.stock.pieces[i]) for i in self.permutation], dtype=np.int32
        )

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Loads a SentencePiece model file, or a folder with ``tokenizer.model`` (as ``save`` writes it).

        Raises UserError if the model is missing, is not a byte-fallback BPE, or if the folder was saved with another
        order of the pieces than this version makes of the same model.
        """
        path = Path(path)
        file = path / MODEL_FILE if path.is_dir() else path
        try:
            tokenizer = cls(file.read_bytes(), str(file))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {file}: {error.strerror}") from error
        order = path / ORDER_FILE
        if path.is_dir() and order.exists():
            saved = documents.read(order, Order)["hash"]
            if saved != tokenizer.hash:
                raise UserError(
                    f"{order}: ids were given by order {documents.show(saved)}, but {file} gives {tokenizer.hash}:"
                    " the files do not belong together"
                )
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write the stock model and the hash of the order to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        order = json.dumps({"format_version": 1, "size": self.size, "hash": self.hash}) + "\n"
        write_file(folder / ORDER_FILE, order.encode())
        write_file(folder / MODEL_FILE, self.model_bytes)

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the model and of the order of the pieces."""
        state = xxhash.xxh3_128(self.model_bytes)
        state.update(self.permutation.tobytes())
        return state.hexdigest()

    def legal(self, vocab: int) -> None:
        """Raise UserError, naming the nearest legal sizes, unless the first ``vocab`` pieces are a tokenizer."""
        if 0 <= vocab <= self.size and self.age.cut[vocab]:
            return
        sizes = np.flatnonzero(self.age.cut)
        below, above = sizes[sizes < vocab], sizes[sizes > vocab]
        near = " or ".join(str(s) for s in (*below[-1:], *above[:1]))
        if vocab > self.size:
            why = f"the tokenizer has {self.size} pieces"
        elif vocab < sizes[0]:
            why = f"special pieces, bytes and ASCII characters alone are {sizes[0]}"
        else:
            why = "it would cut a group of pieces of equal score, whose order SentencePiece decides in the text"
        raise UserError(f"a vocabulary of {vocab} is not possible with {self.name}: {why}; use {near}")

    def processor(self, vocab: int | None = None, dummy_prefix: bool = True) -> SentencePieceProcessor:
        """The tokenizer of the first ``vocab`` pieces (default: all), whose ids are in merge-age order.

        Without ``dummy_prefix`` it takes text as it is.
        """
        vocab = self.size if vocab is None else vocab
        self.legal(vocab)
        key = (vocab, dummy_prefix)
        if key not in self._processors:
            proto = self._truncated(self.permutation[:vocab])
            if not dummy_prefix:
                proto.normalizer_spec.add_dummy_prefix = False
            self._processors[key] = SentencePieceProcessor(model_proto=proto.SerializeToString())
        return self._processors[key]

    def encode(self, text: str, vocab: int | None = None) -> NDArray[np.int32]:
        """The ids of a text, without bos or eos."""
        return np.array(self.processor(vocab).encode(text), dtype=np.int32)

    def decode(self, ids: NDArray[np.integer] | list[int]) -> str:
        """The text that ids of any stage stand for."""
        return self.processor().decode([int(i) for i in ids])

    def spellings(self, vocab: int) -> list[list[int]]:
        """The text of each piece from ``vocab`` on, encoded by the pieces before it without the dummy prefix."""
        return self.processor(vocab, dummy_prefix=False).encode(self.pieces[vocab:])

    def stock_model(self, vocab: int) -> spm.ModelProto:
        """The SentencePiece model of the first ``vocab`` pieces in stock order."""
        self.legal(vocab)
        return self._truncated(np.sort(self.permutation[:vocab]))

    def _truncated(self, stock_ids: NDArray[np.int32]) -> spm.ModelProto:
        proto = spm.ModelProto()
        proto.trainer_spec.CopyFrom(self.stock.trainer_spec)
        proto.trainer_spec.vocab_size = len(stock_ids)
        proto.normalizer_spec.CopyFrom(self.stock.normalizer_spec)
        proto.pieces.extend(self.stock.pieces[i] for i in stock_ids)
        return proto


def _text_bytes(piece: spm.ModelProto.SentencePiece) -> int:
    if piece.type == Piece.BYTE:
        return 1
    if piece.type == Piece.NORMAL:
        return len(piece.piece.replace(SPACE, " ").encode())
    return 0


def _check_supported(model: spm.ModelProto, name: str) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = [piece.type for piece in model.pieces]
    problems = {
        "it is no BPE model": trainer.model_type != spm.TrainerSpec.BPE,
        "it has no byte fallback, so a small vocabulary could not write every text": kinds.count(Piece.BYTE) != 256,
        "it has no piece for what is unknown": Piece.UNKNOWN not in kinds,
        "it has no piece for the space": all(piece.piece != SPACE for piece in model.pieces),
        "it puts the space mark after words": trainer.treat_whitespace_as_suffix,
        "it changes text before it cuts it": bool(normalizer.precompiled_charsmap)
        or normalizer.remove_extra_whitespaces,
        "it has user-defined or unused pieces": not {Piece.USER_DEFINED, Piece.UNUSED}.isdisjoint(kinds),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise UserError(
                f"{name} cannot be grown by merge age: {problem};"
                " train one with byte fallback instead (leave out --tokenizer)"
            )
