"""Writes a stage's WordPiece vocabulary as Hugging Face ``transformers`` loads it, ids in the order of its
vocab.txt."""

import json
import logging
from pathlib import Path

import numpy as np

from pretrain.data.tokenizers.wordpiece import VOCAB_FILE, WordPiece

log = logging.getLogger(__name__)


def export_wordpiece(words: WordPiece, folder: Path, vocab: int) -> None:
    """Write ``vocab.txt`` and ``tokenizer_config.json`` of the first ``vocab`` pieces.

    ``AutoTokenizer.from_pretrained(folder)`` then encodes a text as the stage does, in the ids of
    ``words.stock_order(vocab)``, with [CLS] and [SEP] around it. This holds for all pieces in use; with fewer, a stage
    cuts words by the full vocabulary first, which no vocabulary file can say: a warning tells so. Raises UserError if
    ``vocab`` is not legal.
    """
    words.legal(vocab)
    if vocab < words.used:
        log.warning(
            "the exported tokenizer cuts some words otherwise than in training, where %d pieces are cut out of %d",
            vocab,
            words.used,
        )
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [words.stock[i] for i in np.sort(words.permutation[:vocab])]
    (folder / VOCAB_FILE).write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": words.lowercase,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
