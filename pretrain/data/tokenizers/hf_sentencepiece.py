"""Writes a stage's tokenizer as Hugging Face ``transformers`` and SentencePiece load it, ids in the stock order."""

import json
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as spm
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from pretrain.data.tokenizers import sentencepiece as own
from pretrain.data.tokenizers.merge_age import SPACE, Piece


def export_tokenizer(tokenizer: own.Tokenizer, folder: Path, vocab: int) -> None:
    """Write ``tokenizer.model``, ``tokenizer.json`` and ``tokenizer_config.json`` of the first ``vocab`` pieces.

    ``AutoTokenizer.from_pretrained(folder)`` then encodes a text as the stage does, in the ids of
    ``tokenizer.stock_order(vocab)``; no bos or eos is added. (The names of special pieces in a text are those pieces to
    ``transformers``, and plain characters to SentencePiece.) Raises UserError if ``vocab`` is not legal.
    """
    model = tokenizer.stock_model(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    _fast(model).save(str(folder / "tokenizer.json"))
    trainer = model.trainer_spec
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": trainer.bos_piece if tokenizer.bos is not None else None,
        "eos_token": trainer.eos_piece,
        "unk_token": tokenizer.pieces[tokenizer.unk],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _fast(model: spm.ModelProto) -> Tokenizer:
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    unknown = next(piece.piece for piece in model.pieces if piece.type == Piece.UNKNOWN)
    fast = Tokenizer(BPE(ids, _merges(model, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    undo: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    fast.normalizer = normalizers.Sequence(steps)
    fast.decoder = decoders.Sequence(undo)
    special = [piece.piece for piece in model.pieces if piece.type in (Piece.CONTROL, Piece.UNKNOWN)]
    fast.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return fast


def _merges(model: spm.ModelProto, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, by falling score of the piece: what SentencePiece allows, as ranks."""
    scores = np.array([piece.score for piece in model.pieces])
    merges = []
    for i in np.argsort(-scores, kind="stable"):
        piece = model.pieces[int(i)]
        if piece.type == Piece.NORMAL:
            text = piece.piece
            parts = [(text[:k], text[k:]) for k in range(1, len(text))]
            merges += [(left, right) for left, right in parts if left in ids and right in ids]
    return merges
