"""The validation text: the same bytes in every segmentation, each counted once."""

import numpy as np
import pytest

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.validation import probe, validation_set
from pretrain.errors import UserError

OPTIONS = {"seed": 7, "validation": 0.1}


@pytest.mark.parametrize("limit", [None, 1000])
def test_same_text_for_every_stage(corpus: Corpus, texts: list[str], limit: int | None) -> None:
    """Targets spell the held-out documents (or their beginning), whatever the vocabulary and the length."""
    held_out = [texts[i].replace("\u2581", " ") for i in Split(len(texts), 0.1, 7).validation_documents()]
    sizes = set()
    for vocab, seq_len in ((400, 64), (800, 100), (1200, 7)):
        found = validation_set(corpus, vocab=vocab, seq_len=seq_len, limit_bytes=limit, **OPTIONS)
        assert found.tokens.shape == (len(found.mask), seq_len + 1)
        assert np.array_equal(found.tokens[1:, 0], found.tokens[:-1, -1])
        targets = found.tokens[:, 1:][found.mask]
        documents = np.split(targets, np.flatnonzero(targets == corpus.tokenizer.eos) + 1)
        spelled = [corpus.tokenizer.decode(ids[ids != corpus.tokenizer.eos]) for ids in documents if len(ids)]
        assert found.bytes == sum(len(text.encode()) for text in spelled)
        if limit is None:
            assert spelled == held_out
        else:
            assert "".join(held_out).startswith("".join(spelled))
            assert limit - 50 < found.bytes <= limit
        sizes.add(found.bytes)
    assert len(sizes) == 1


def test_probe(corpus: Corpus) -> None:
    """Held-out text in the stage's segmentation, repeated where it is short."""
    few = probe(corpus, 4, vocab=800, seq_len=32, **OPTIONS)
    found = validation_set(corpus, vocab=800, seq_len=4 * 33, **OPTIONS)
    assert np.array_equal(few.ravel(), found.tokens[0, 1:])
    assert probe(corpus, 500, vocab=1200, seq_len=256, **OPTIONS).shape == (500, 257)


def test_a_limit_holds_text_or_says_what_would(corpus: Corpus) -> None:
    """However small: a measurement over nothing has no result."""
    cut = {"vocab": 800, "seq_len": 32, **OPTIONS}
    with pytest.raises(UserError, match=r"train\.eval_bytes: 0 bytes hold no piece .* give at least that") as error:
        validation_set(corpus, limit_bytes=0, **cut)
    least = int(str(error.value).split("begins with one of ")[1].split(";")[0])
    for limit in range(1, 30):
        if limit < least:
            with pytest.raises(UserError, match="eval_bytes"):
                validation_set(corpus, limit_bytes=limit, **cut)
        else:
            found = validation_set(corpus, limit_bytes=limit, **cut)
            assert 0 < found.bytes <= limit
            assert found.mask.any()
