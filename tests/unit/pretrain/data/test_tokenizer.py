"""A stage's segmentation against the truncated tokenizer itself; bytes; legal sizes; refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as spm

from pretrain.data.tokenizers.merge_age import Piece
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.errors import UserError

VOCABS = (400, 512, 800, 1199, 1200)


def model(tokenizer: Tokenizer) -> spm.ModelProto:
    """A copy that a test may change."""
    proto = spm.ModelProto()
    proto.CopyFrom(tokenizer.stock)
    return proto


def check(tokenizer: Tokenizer, text: str) -> None:
    full = tokenizer.encode(text)
    for vocab in VOCABS:
        ids = tokenizer.encode(text, vocab)
        assert tokenizer.segmentation(vocab).apply(full).tolist() == ids.tolist()
        if text:
            read = text.replace("\u2581", " ")  # SentencePiece's space mark in a text is a space
            assert int(tokenizer.piece_bytes[ids].sum()) - tokenizer.prefix_bytes == len(read.encode())
            assert tokenizer.decode(ids) == read


def test_real_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    """The table equals the truncated tokenizer, and bytes are those of the text."""
    for text in texts:
        check(tokenizer, text)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_fuzzed_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """The same for any characters and for any sequence of pieces."""
    words = st.sampled_from([piece.replace("\u2581", " ") for piece in tokenizer.pieces[259:]])
    characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    check(tokenizer, "".join(data.draw(st.lists(words | characters, max_size=30))))


def test_stock_segmentation(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Renumbered ids are the stock model's own, at every stage of the export."""
    from sentencepiece import SentencePieceProcessor

    for vocab in (400, 1200):
        stock = SentencePieceProcessor(model_proto=tokenizer.stock_model(vocab).SerializeToString())
        for text in texts:
            assert tokenizer.stock_order(vocab)[tokenizer.encode(text, vocab)].tolist() == stock.encode(text)


def test_segmentation_in_chunks(tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ids are cut into chunks does not show."""
    ids = np.concatenate([tokenizer.encode(text) for text in texts])
    whole = tokenizer.segmentation(500).apply(ids)
    monkeypatch.setattr("pretrain.data.tokenizers.segmentation.CHUNK", 7)
    assert np.array_equal(tokenizer.segmentation(500).apply(ids), whole)


def test_new_pieces(tokenizer: Tokenizer) -> None:
    """A new row's pieces are old rows that spell the same text."""
    for row, parts in enumerate(tokenizer.new_pieces(600, 900), start=600):
        assert max(parts) < 600
        assert len(parts) > 1
        assert tokenizer.piece_bytes[parts].sum() == tokenizer.piece_bytes[row]


def test_illegal_vocabularies(tokenizer: Tokenizer) -> None:
    """Each names the nearest sizes that are legal."""
    least = int(np.flatnonzero(tokenizer.age.cut)[0])
    with pytest.raises(UserError, match=rf"alone are {least}; use {least}$"):
        tokenizer.legal(10)
    with pytest.raises(UserError, match=r"has 1200 pieces; use 1200$"):
        tokenizer.segmentation(1201)
    proto = model(tokenizer)
    for stock in tokenizer.age.permutation[600:603]:
        proto.pieces[stock].score = proto.pieces[tokenizer.age.permutation[600]].score
    tied = Tokenizer(proto.SerializeToString(), "tied.model")
    tied.legal(600)
    with pytest.raises(UserError, match=r"602 is not possible with tied.model: .*equal score.*; use 600 or 603$"):
        tied.legal(602)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A folder gives the tokenizer back, and notices an order that is not its own."""
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash == Tokenizer.load(tmp_path / "tokenizer.model").hash
    (tmp_path / "merge_age.json").write_text(json.dumps({"hash": "0"}))
    with pytest.raises(UserError, match="do not belong together"):
        Tokenizer.load(tmp_path)


def test_refused_models(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Models that do not nest, or whose text could not be counted in bytes."""
    with pytest.raises(UserError, match="No such file"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"x\.model is not a SentencePiece model"):
        Tokenizer(b"no model", "x.model")
    unigram, bytes_missing, symbol, squeezed = (model(tokenizer) for _ in range(4))
    unigram.trainer_spec.model_type = spm.TrainerSpec.UNIGRAM
    del bytes_missing.pieces[next(i for i, p in enumerate(bytes_missing.pieces) if p.type == Piece.BYTE)]
    symbol.pieces[700].type = Piece.USER_DEFINED
    squeezed.normalizer_spec.remove_extra_whitespaces = True
    for proto, why in (
        (unigram, "no BPE"),
        (bytes_missing, "no byte fallback"),
        (symbol, "user-defined"),
        (squeezed, "changes text"),
    ):
        with pytest.raises(UserError, match=rf"x\.model cannot be grown by merge age: .*{why}"):
            Tokenizer(proto.SerializeToString(), "x.model")
