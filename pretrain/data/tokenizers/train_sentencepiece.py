"""Trains the kind of SentencePiece model that Cambium grows: BPE with byte fallback."""

import io
import re
from collections.abc import Iterable, Iterator

from sentencepiece import SentencePieceTrainer, set_random_generator_seed

from pretrain.errors import UserError

LINE = 4096  # characters; SentencePiece drops longer "sentences" than its limit
SENTENCES = 4_000_000  # a sample that keeps training a vocabulary within some 10 GB and an hour


def train_tokenizer(texts: Iterable[str], vocab_size: int, threads: int = 1) -> bytes:
    """A model of ``vocab_size`` pieces as LLaMA-2's is made: digits apart, no normalisation, spaces kept.

    Learns from a sample of at most ``SENTENCES`` lines. Raises UserError if the texts have too few different words for
    so many pieces.
    """
    model = io.BytesIO()
    set_random_generator_seed(0)  # of the sample: the same text gives the same tokenizer
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.99995,
            max_sentence_length=4 * LINE,
            input_sentence_size=SENTENCES,
            shuffle_input_sentence=True,
            num_threads=threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if limit := re.search(r"value <= (\d+)", str(error)):
            raise UserError(
                f"this text has enough different words for {limit[1]} pieces, not for {vocab_size}: give --vocab-size"
            ) from error
        raise UserError(f"could not train a tokenizer of {vocab_size} pieces on this text: {error}") from error
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), LINE):
                yield line[start : start + LINE]
