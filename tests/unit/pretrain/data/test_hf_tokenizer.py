"""The exported tokenizer, as transformers and SentencePiece load it, against the stage's."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pretrain.data.tokenizers.hf_sentencepiece import export_tokenizer
from pretrain.data.tokenizers.sentencepiece import Tokenizer

VOCABS = (400, 1200)


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, PreTrainedTokenizerBase]:
    found = {}
    for vocab in VOCABS:
        folder = tmp_path_factory.mktemp("export")
        export_tokenizer(tokenizer, folder, vocab)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab}))
        found[vocab] = AutoTokenizer.from_pretrained(folder)
        assert SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size() == vocab
    return found


def check(tokenizer: Tokenizer, exported: dict[int, PreTrainedTokenizerBase], text: str) -> None:
    for vocab, other in exported.items():
        ids = tokenizer.stock_order(vocab)[tokenizer.encode(text, vocab)].tolist()
        assert other(text)["input_ids"] == ids
        assert other.decode(ids) == text.replace("\u2581", " ")


def test_real_text(tokenizer: Tokenizer, exported: dict[int, PreTrainedTokenizerBase], texts: list[str]) -> None:
    """The same ids, and the text back."""
    for text in texts:
        check(tokenizer, exported, text)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_fuzzed_text(tokenizer: Tokenizer, exported: dict[int, PreTrainedTokenizerBase], data: st.DataObject) -> None:
    """The same for any characters and pieces, but the names of specials."""
    words = st.sampled_from([piece.replace("\u2581", " ") for piece in tokenizer.pieces[259:]])
    characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    text = "".join(data.draw(st.lists(words | characters, max_size=30)))
    if not any(special in text for special in ("<unk>", "<s>", "</s>")):
        check(tokenizer, exported, text)


def test_specials(tokenizer: Tokenizer, exported: dict[int, PreTrainedTokenizerBase]) -> None:
    """The end of text has the id that the exported model's row has."""
    for vocab, other in exported.items():
        assert len(other) == vocab
        assert other.eos_token_id == tokenizer.stock_order(vocab)[tokenizer.eos]
        assert np.array_equal(np.sort(tokenizer.stock_order(vocab)), np.arange(vocab))
