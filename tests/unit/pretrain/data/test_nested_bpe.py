"""A byte-level BPE cut by age encodes as the library does with the smaller vocabulary, whatever the text."""

import json
import random
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.data.tokenizers.nested_bpe import Bpe, by_age, cut_off
from pretrain.data.tokenizers.segmentation import Segmentation

ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def trained(seed: int, special_first: bool) -> dict[str, Any]:
    """A tokenizer.json as the library trains one, special pieces first, or behind the merges as Qwen and Llama have
    them."""
    draw = random.Random(seed)
    texts = ["".join(draw.choices("aaabbc é", k=200)) for _ in range(5)]
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special * special_first, initial_alphabet=ALPHABET, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if not special_first:
        made.add_special_tokens(special)
        made.add_tokens(["<tool>"])
    content: dict[str, Any] = json.loads(made.to_str())
    return content


def with_all_splits(content: dict[str, Any]) -> dict[str, Any]:
    """As a list of ranked pieces is turned into merges for Llama 3: every way to make a piece of two others, and words
    that are pieces are not cut."""
    vocab = content["model"]["vocab"]
    merges = [
        [piece[:k], piece[k:]]
        for piece in sorted(vocab, key=vocab.__getitem__)
        if piece[0] != "<"
        for k in range(1, len(piece))
        if piece[:k] in vocab and piece[k:] in vocab
    ]
    return {**content, "model": {**content["model"], "merges": merges, "ignore_merges": True}}


def of_chance(seed: int) -> dict[str, Any]:
    """Merges that nobody has trained: some never fire, some make a piece that an earlier one needs."""
    draw, content = random.Random(seed), trained(0, special_first=True)
    base = {piece: i for piece, i in content["model"]["vocab"].items() if len(piece) == 1 or piece[0] == "<"}
    pieces, merges = list("abc"), list[tuple[str, str]]()
    for _ in range(25):
        pair = draw.choice(pieces), draw.choice(pieces)
        if pair not in merges and len("".join(pair)) < 8:
            merges.append(pair)
            pieces.append("".join(pair))
    ids = base | {piece: len(base) + i for i, piece in enumerate(dict.fromkeys(map("".join, merges)))}
    draw.shuffle(merges)
    return {**content, "model": {**content["model"], "vocab": ids, "merges": [list(pair) for pair in merges]}}


def library(content: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(content))


MADE = {
    "special first": lambda seed: trained(seed, True),
    "special behind": lambda seed: by_age(trained(seed, False)),
    "all splits": lambda seed: by_age(with_all_splits(trained(seed, False))),
    "of chance": of_chance,
    "of chance, by age": lambda seed: by_age(of_chance(seed)),
}


@pytest.mark.parametrize("kind", MADE)
@given(seed=st.integers(0, 20), text=st.text("aabbccé <", max_size=60), data=st.data())
@settings(max_examples=30, deadline=None)
def test_cut(kind: str, seed: int, text: str, data: st.DataObject) -> None:
    """What is encoded with all pieces and spelled with the first V is what the library makes of it with these."""
    content = MADE[kind](seed)
    bpe = Bpe.of(content)
    vocab = data.draw(st.sampled_from(np.flatnonzero(bpe.cut).tolist()))
    full = np.array(library(content).encode(text).ids, dtype=np.int64)
    ours = Segmentation.of(vocab, bpe.spellings(vocab)).apply(full).tolist()
    assert ours == library(cut_off(content, vocab)).encode(text).ids


@pytest.mark.parametrize("change", [lambda c: c, with_all_splits])
def test_by_age_is_the_same_tokenizer(change: Any) -> None:
    """Other ids, special ones first, and every size from the base on is possible."""
    content = change(trained(1, special_first=False))
    assert Bpe.of(content).cut.sum() <= 1  # special pieces are behind all merges
    aged, text = by_age(content), "abba <tool>cab<|end|> aaé"
    assert library(aged).encode(text).tokens == library(content).encode(text).tokens
    assert library(aged).token_to_id("<|end|>") < 3
    cut = Bpe.of(aged).cut
    assert cut[len(ALPHABET) + 3 :].all()
    assert not cut[: len(ALPHABET) + 3].any()


def test_what_cannot_be_cut() -> None:
    """A piece that is made by a lower rank than a part of it needs that part."""
    content = trained(0, special_first=True)
    base = {piece: i for piece, i in content["model"]["vocab"].items() if len(piece) == 1 or piece[0] == "<"}
    n, merges = len(base), [["a", "bc"], ["b", "c"]]
    ids = base | {"abc": n, "bc": n + 1}
    bpe = Bpe.of({**content, "model": {**content["model"], "vocab": ids, "merges": merges}})
    assert np.flatnonzero(bpe.cut).tolist() == [n, n + 2]
