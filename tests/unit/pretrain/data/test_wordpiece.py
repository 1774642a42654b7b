"""WordPiece's order of growth and its segmentation, against definitions and against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from pretrain.data.corpus.sentences import sentences
from pretrain.data.tokenizers.hf_wordpiece import export_wordpiece
from pretrain.data.tokenizers.wordpiece import SPECIALS, WordPiece
from pretrain.errors import UserError

STOCK = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "##a", "b", "##b", "é", "##é", "ü", "’"),
    *("ab", "##bé", "[unused1]", "abé", "##ab"),
]


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> WordPiece:
    """1,000 pieces."""
    return WordPiece.train(lambda: texts, 1000, lowercase=True, name="trained")


def test_order() -> None:
    """Specials, ASCII and signs, longer pieces behind the characters that they need, other characters, unused."""
    words = WordPiece(STOCK, lowercase=True, name="x")
    assert words.pieces == [
        *SPECIALS,
        *("a", "##a", "b", "##b", "’", "ab", "##é", "##bé", "abé", "##ab", "é", "ü", "[unused0]", "[unused1]"),
    ]
    assert [words.stock[i] for i in words.permutation] == words.pieces
    assert (words.least, words.replaceable(19), words.replaceable(13)) == (10, (5, 17), (5, 13))
    assert words.stock_order(10).tolist() == list(range(10))
    assert words.stock_order(19)[words.pieces.index("abé")] == STOCK.index("abé")


def test_segmentation() -> None:
    """A piece that the stage does not have is spelt greedily with those that it has; or is unknown."""
    words = WordPiece(STOCK, lowercase=True, name="x")

    def spelt(piece: str, vocab: int) -> list[str]:
        return [words.pieces[i] for i in words.segmentation(vocab).apply(np.array([words.pieces.index(piece)]))]

    assert spelt("abé", 13) == ["ab", "##é"]
    assert spelt("abé", 12) == ["ab", "##é"]
    assert spelt("abé", 11) == ["[UNK]"]
    assert spelt("##ab", 13) == ["##a", "##b"]
    assert spelt("ab", 13) == ["ab"]
    assert words.new_pieces(13, 15) == [[10, 11], [6, 8]]


def test_same_as_transformers(trained: WordPiece, texts: list[str], tmp_path: Path) -> None:
    """The full vocabulary encodes as BertTokenizer does, in the order of vocab.txt."""
    trained.save(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path, do_lower_case=True)
    order = trained.stock_order(trained.size)
    lines = [sentence for text in texts[:60] + texts[-6:] for sentence in sentences(text)]
    for ids, line in zip(trained.encode(lines), lines, strict=True):
        assert order[ids].tolist() == theirs(line, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_export(lowercase: bool, texts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AutoTokenizer of the exported folder encodes as the full vocabulary does, capitals and all; fewer pieces warn."""
    words = WordPiece.train(lambda: texts, 900, lowercase, name="trained")
    export_wordpiece(words, tmp_path, words.size)
    assert not caplog.records
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "megatron-bert"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    order = words.stock_order(words.size)
    lines = [sentence for text in texts[:60] + texts[-6:] for sentence in sentences(text)]
    for ids, line in zip(words.encode(lines), lines, strict=True):
        assert theirs(line)["input_ids"] == order[[words.cls, *ids, words.sep]].tolist()
    assert theirs.mask_token_id == order[words.mask]
    export_wordpiece(words, tmp_path / "fewer", 500)
    assert "otherwise than in training" in caplog.text
    kept = (tmp_path / "fewer" / "vocab.txt").read_text().splitlines()
    assert [kept[row] for row in words.stock_order(500)] == words.pieces[:500]


def test_stages_spell_the_same_words(trained: WordPiece, texts: list[str]) -> None:
    """Ids of a stage are below its size, and joined give the text of the full vocabulary's ids."""
    for ids in trained.encode([sentence for text in texts[:60] for sentence in sentences(text)]):
        for vocab in (trained.least, 300, 999):
            stage = trained.segmentation(vocab).apply(np.array(ids, dtype=np.int64))
            if trained.unk not in stage:
                assert stage.max(initial=0) < vocab
                assert trained.decode(stage) == trained.decode(ids)


def test_saved_and_trained_again(trained: WordPiece, texts: list[str], tmp_path: Path) -> None:
    """The same text gives the same vocabulary, and a folder gives it back."""
    trained.save(tmp_path)
    again = WordPiece.train(lambda: texts, 1000, lowercase=True, name="again")
    assert WordPiece.load(tmp_path).hash == trained.hash == again.hash
    assert WordPiece.load(tmp_path / "vocab.txt", lowercase=False).hash != trained.hash


def test_refused(tmp_path: Path, texts: list[str]) -> None:
    """Each message says what is missing."""
    with pytest.raises(UserError, match=r"x has no \[CLS\], \[MASK\]"):
        WordPiece(["[PAD]", "[UNK]", "[SEP]", "a"], True, "x")
    with pytest.raises(UserError, match="twice"):
        WordPiece([*SPECIALS, "a", "a"], True, "x")
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        WordPiece.load(tmp_path / "none.txt")
    with pytest.raises(UserError, match="not for 100000: give --vocab-size"):
        WordPiece.train(lambda: texts, 100_000, True, "x")
    for vocab in (9, 20):
        with pytest.raises(UserError, match="from 10 to 19"):
            WordPiece(STOCK, True, "x").legal(vocab)
