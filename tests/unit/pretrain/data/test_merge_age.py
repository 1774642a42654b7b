"""The order in which pieces come, on a model made by hand."""

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as spm

from pretrain.data.tokenizers.merge_age import Piece, merge_age

NORMAL, CONTROL = Piece.NORMAL, Piece.CONTROL


def pieces(*rows: tuple[str, float, int]) -> list[Piece]:
    return [spm.ModelProto.SentencePiece(piece=text, score=score, type=kind) for text, score, kind in rows]


MODEL = pieces(
    ("<unk>", 0, Piece.UNKNOWN),
    ("ab", -2, NORMAL),  # ids do not follow scores
    ("</s>", 0, CONTROL),
    ("éa", -3, NORMAL),
    ("aa", -1, NORMAL),
    ("ü", -9, NORMAL),  # no merge needs it
    ("é", -8, NORMAL),
    ("b", -7, NORMAL),
    ("\u2581", -6, NORMAL),
    ("a", -5, NORMAL),
    ("  ", -1e9, NORMAL),  # a group of three equal scores, one with a character of its own
    ("ßa", -1e9, NORMAL),
    ("bb", -1e9, NORMAL),
    ("ß", -10, NORMAL),
)


def test_order() -> None:
    """Specials, ASCII and the space mark, merges by score behind the characters they need, other characters."""
    order = merge_age(MODEL).permutation
    assert [MODEL[i].piece for i in order] == [
        *("<unk>", "</s>", "b", "\u2581", "a"),
        *("aa", "ab", "é", "éa", "  ", "ß", "ßa", "bb", "ü"),
    ]


def test_cuts() -> None:
    """Legal anywhere from the base on, but inside the group of equal scores."""
    cut = merge_age(MODEL).cut
    # 5 is the base; 9 ends before the group, which is "  ", "ß", "ßa", "bb" at 9 to 12.
    assert np.flatnonzero(cut).tolist() == [5, 6, 7, 8, 9, 13, 14]
