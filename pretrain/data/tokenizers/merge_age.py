"""The order in which a SentencePiece BPE vocabulary is grown: by merge age.

SentencePiece's BPE always applies the possible merge of the highest score, and never looks at ids. So renumbering the
pieces changes no segmentation, and if they are renumbered by falling score, the first V pieces are a tokenizer of
their own whose segmentation is what the full tokenizer's was before the later merges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2 as spm

Piece = spm.ModelProto.SentencePiece
SPACE = "\u2581"  # the mark that SentencePiece writes for a space


@dataclass(frozen=True)
class MergeAge:
    """``permutation[i]`` is the stock id of the i-th oldest piece. ``cut[v]`` says whether the first v pieces may be a
    tokenizer (bool [size + 1]): all of the base, and no merge without the others of the same score, since
    SentencePiece breaks such ties by place in the text."""

    permutation: NDArray[np.int32]
    cut: NDArray[np.bool_]


def merge_age(pieces: Sequence[spm.ModelProto.SentencePiece]) -> MergeAge:
    """The merge-age order of a model's pieces.

    Specials and bytes come first, then the printable ASCII characters and the space mark; these
    are the base. Then the merges by falling score, each preceded by any character that it is the first to need;
    at last the characters that no merge needs. Equals keep their stock order.
    """
    special: list[int] = []
    base: list[int] = []
    characters: dict[str, int] = {}
    merges: list[int] = []
    for stock, piece in enumerate(pieces):
        text = piece.piece
        if piece.type != Piece.NORMAL:
            special.append(stock)
        elif len(text) > 1:
            merges.append(stock)
        elif text == SPACE or " " <= text <= "~":
            base.append(stock)
        else:
            characters[text] = stock
    merges.sort(key=lambda stock: (-pieces[stock].score, stock))

    order = special + base
    cut = np.ones(len(pieces) + 1, dtype=np.bool_)
    cut[: len(order)] = False
    group_start, group_score = len(order), None  # position of the first merge of the current score
    for stock in merges:
        for character in pieces[stock].piece:
            if character in characters:
                order.append(characters.pop(character))
        if pieces[stock].score == group_score:
            cut[group_start + 1 : len(order) + 1] = False
        else:
            group_start, group_score = len(order), pieces[stock].score
        order.append(stock)
    order += characters.values()
    return MergeAge(np.array(order, dtype=np.int32), cut)
