"""The validation text: the same documents, and the same bytes of them, in every stage's segmentation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.errors import UserError

LIMIT = 4 << 20  # bytes of text
FIRST = 1024  # documents that are looked at first, where only the beginning of the text is wanted


@dataclass(frozen=True)
class ValidationSet:
    """``tokens``: int64 [n, seq_len + ahead], inputs and targets overlapping by one, or by how far targets are ahead;
    ``mask``: bool [n, seq_len], False where the target is padding; ``bytes``: the UTF-8 bytes of text that all targets
    stand for.

    The first ``ahead`` inputs are eos and every token of the text is a target once, so the sum of the losses over
    ``bytes * ln 2`` is the bits per byte of a text that no stage's vocabulary changes.
    """

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    bytes: int


def validation_set(
    corpus: Corpus,
    *,
    vocab: int,
    seq_len: int,
    seed: int,
    validation: float,
    limit_bytes: int | None = LIMIT,
    ahead: int = 1,
) -> ValidationSet:
    """The validation documents in the first ``vocab`` pieces; if their text is longer than ``limit_bytes``, its
    beginning (cut between pieces of the full vocabulary, so at the same place for every stage)."""
    ids, text_bytes = _validation_ids(corpus, seed, validation, limit_bytes)
    stage = corpus.tokenizer.segmentation(vocab).apply(ids)
    n = -(-len(stage) // seq_len)
    padded = np.full(n * seq_len + ahead, corpus.tokenizer.eos, dtype=np.int64)
    padded[ahead : len(stage) + ahead] = stage
    tokens = padded[np.arange(n)[:, None] * seq_len + np.arange(seq_len + ahead)]
    mask = (np.arange(n * seq_len) < len(stage)).reshape(n, seq_len)
    return ValidationSet(tokens, mask, text_bytes)


def probe(
    corpus: Corpus, n: int, *, vocab: int, seq_len: int, seed: int, validation: float, ahead: int = 1
) -> NDArray[np.int64]:
    """The first n sequences of the validation text in the first ``vocab`` pieces, for a growth certificate: int64 [n,
    seq_len + ahead].

    A shorter text is repeated.
    """
    need = n * (seq_len + ahead)
    longest = int(corpus.tokenizer.piece_bytes.max())
    ids, _ = _validation_ids(corpus, seed, validation, need * longest)
    stage = corpus.tokenizer.segmentation(vocab).apply(ids)
    return np.resize(stage, need).astype(np.int64).reshape(n, seq_len + ahead)


def _validation_ids(
    corpus: Corpus, seed: int, validation: float, limit_bytes: int | None
) -> tuple[NDArray[np.int32], int]:
    """The validation text in full-vocabulary ids, and its length in bytes. Raises UserError if there is none."""
    split = Split(corpus.tokens.documents, validation, seed)
    stop = None if limit_bytes is None else FIRST
    starts, counts = corpus.tokens.document_ranges(split.validation_documents(0, stop))
    if limit_bytes is not None:  # every token but eos and the dummy prefix is at least a byte
        while (sizes := np.cumsum(np.maximum(counts - 2, 0)))[-1] < limit_bytes and len(counts) < split.validation:
            starts, counts = corpus.tokens.document_ranges(split.validation_documents(0, 2 * len(counts)))
        enough = int(np.searchsorted(sizes, limit_bytes)) + 1
        starts, counts = starts[:enough], counts[:enough]
    ids = corpus.read(starts, counts)
    size = corpus.tokenizer.piece_bytes[ids].astype(np.int64)
    size[np.cumsum(counts) - counts] -= corpus.tokenizer.prefix_bytes
    ends = np.cumsum(size)
    length = len(ids) if limit_bytes is None else int(np.searchsorted(ends, limit_bytes, side="right"))
    if not length or not ends[length - 1]:
        if not len(ends) or not ends[-1]:
            raise UserError(f"{corpus.path}: the documents that are held out have no text; raise validation_fraction")
        raise UserError(
            f"train.eval_bytes: {limit_bytes} bytes hold no piece of the held-out text, which begins with one of "
            f"{ends[ends > 0][0]}; give at least that, or better 100,000 and more"
        )
    return ids[:length], int(ends[length - 1])
