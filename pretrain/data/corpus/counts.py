"""How many tokens the training text of a stage has: counted once, and kept beside the corpus.

The whole corpus is read for it, which takes minutes where it is large. The number is kept in the memory of this
process, and in the corpus's folder where that may be written, by what it depends on: tokens, tokenizer, vocabulary and
split.
"""

import json
import logging
from contextlib import suppress

import numpy as np
import xxhash
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import AnyCorpus, Split
from pretrain.runtime.files import write_file

log = logging.getLogger(__name__)

CHUNK = 4096  # documents that are counted at a time
FOLDER = "counts"  # a folder in the corpus's

_known: dict[str, int] = {}


def training_tokens(corpus: AnyCorpus, vocab: int, fraction: float, seed: int) -> int:
    """The tokens of all training documents in the segmentation of the first `vocab` pieces.

    fraction: the share of documents that is held out for validation, chosen by `seed`.
    """
    key = xxhash.xxh3_128_hexdigest(json.dumps([corpus.hash, vocab, fraction, seed]).encode())
    if key not in _known:
        path = corpus.path / FOLDER / key
        try:
            _known[key] = int(path.read_text())
        except (OSError, ValueError):
            _known[key] = _count(corpus, vocab, fraction, seed)
            with suppress(OSError):  # the corpus may be read-only, or another process was first
                path.parent.mkdir(exist_ok=True)
                write_file(path, str(_known[key]).encode())
    return _known[key]


def _count(corpus: AnyCorpus, vocab: int, fraction: float, seed: int) -> int:
    log.info("counting the tokens of %s, once", corpus.path)
    tokens, lengths = corpus.tokens, corpus.tokenizer.segmentation(vocab).lengths
    split = Split(tokens.documents, fraction, seed)

    def of(documents: NDArray[np.int64]) -> int:
        return int(lengths[corpus.read(*tokens.document_ranges(documents))].sum())

    all_of_it = (np.arange(at, min(at + CHUNK, tokens.documents)) for at in range(0, tokens.documents, CHUNK))
    held_out = (split.validation_documents(at, at + CHUNK) for at in range(0, split.validation, CHUNK))
    return sum(map(of, all_of_it)) - sum(map(of, held_out))
