"""Turns text, JSON or Parquet files into a corpus that Cambium trains on: tokens and a tokenizer that can grow.

examples:
  python tools/prepare_data.py book1.txt book2.txt --output data/books --vocab-size 8000
  python tools/prepare_data.py shard-*.parquet --text-key content --output data/web --workers 8
  python tools/prepare_data.py corpus.jsonl --tokenizer llama2/tokenizer.model --output data/corpus
  python tools/prepare_data.py --dataset bookcorpus --split "train[:5%]" --join 100 --wordpiece --output data/bert
  python tools/prepare_data.py --pipeline configs/maths/maths_college.yaml --workers 8

Without --tokenizer, a SentencePiece BPE (byte fallback, no normalisation) of --vocab-size pieces is trained on the
text. A stage of a curriculum trains on any legal number of its oldest pieces. A run that was stopped goes on where it
was when it is started again.

A pipeline (--pipeline) is a file that says what is read, by which rules documents are left out, how duplicates are
found and which corpus of shards it becomes; docs/pipelines.md has its keys. It needs the extra `data`: pip install
'cambium[data]'. slurm/prepare.sh does the same work as SLURM arrays.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretrain.cli import command, preparation
from pretrain.data.corpus.encoders import ByteLevelEncoder, Encoder, SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import ALL, Source
from pretrain.data.tokenizers.byte_level import is_byte_level
from pretrain.errors import UserError

VOCAB_SIZE = 32_000


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help=".txt, .md, .json, .jsonl or .parquet, also compressed (.gz, .xz, .bz2, .zst)",
    )
    parser.add_argument("--output", type=Path, help="folder to make")
    parser.add_argument("--pipeline", type=Path, help="instead of all other options but --workers: a YAML file")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="to use instead of training one: a SentencePiece BPE model with byte fallback, or the tokenizer.json (or "
        "its folder) of a model with a byte-level BPE",
    )
    parser.add_argument(
        "--by-age",
        action="store_true",
        help="byte-level BPE: number its pieces by age, special ones first, so that stages may begin with the first of "
        "them; not for a model that was trained with it, whose rows are in the order of its own ids",
    )
    parser.add_argument(
        "--add-tokens",
        metavar="FILE",
        type=Path,
        help="byte-level BPE: a file with a further piece in each line; a stage whose vocabulary has them begins with "
        "the means of the pieces that spelled them before",
    )
    parser.add_argument("--vocab-size", type=int, help=f"pieces of a trained tokenizer (default: {VOCAB_SIZE})")
    parser.add_argument("--text-key", help="JSON, Parquet, data sets: the column with the text (default: text)")
    parser.add_argument(
        "--document",
        choices=("line", "paragraph", "file"),
        help="text files: what is a document (default: paragraph)",
    )
    parser.add_argument("--dataset", help="instead of files: a data set of the Hugging Face hub, or its folder")
    parser.add_argument(
        "--split", default=ALL, help="part of the rows, for example train[:10%%] (default: %(default)s, all of a file)"
    )
    parser.add_argument(
        "--join",
        type=command.positive,
        default=1,
        help="rows that make a document, where a row is a sentence (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=command.positive, default=2, help="threads, or processes (default: %(default)s)"
    )
    parser.add_argument(
        "--wordpiece", action="store_true", help="for BERT: sentences of WordPiece; --tokenizer is then a vocab.txt"
    )
    parser.add_argument("--cased", action="store_true", help="WordPiece: keep capitals and accents")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for what cannot be prepared, and for an option that would have no effect."""
    if options.pipeline:
        if options.files or options.output or options.dataset or options.tokenizer:
            raise UserError("--pipeline: the file says what is read and what is made; leave the other options out")
        return preparation.whole(options.pipeline, options.workers)
    if not options.output:
        raise UserError("give --output, the folder to make")
    source = Source(
        tuple(options.files),
        "text" if options.text_key is None else options.text_key,
        options.document or "paragraph",
        split=options.split,
        join=options.join,
        dataset=options.dataset,
    )
    byte_level = options.tokenizer and is_byte_level(options.tokenizer)
    for option, given, has_effect, what in (
        ("--cased", options.cased, options.wordpiece, "WordPiece: add --wordpiece"),
        ("--vocab-size", options.vocab_size is not None, not options.tokenizer, "a tokenizer that is trained here"),
        ("--by-age", options.by_age, byte_level and not options.add_tokens, "a byte-level BPE as it is"),
        ("--add-tokens", options.add_tokens, byte_level, "a byte-level BPE"),
        ("--document", options.document, source.kind == "text", "text files"),
        ("--text-key", options.text_key is not None, source.kind != "text", "JSON, Parquet and data sets"),
    ):
        if given and not has_effect:
            raise UserError(f"{option} is only for {what}")
    size = VOCAB_SIZE if options.vocab_size is None else options.vocab_size
    encoder: Encoder[Any]
    if options.wordpiece:
        encoder = WordPieceEncoder(options.tokenizer, size, lowercase=not options.cased)
    elif byte_level:
        encoder = ByteLevelEncoder(options.tokenizer, by_age=options.by_age, added=_lines(options.add_tokens))
    else:
        encoder = SentencePieceEncoder(options.tokenizer, size)
    with _Bars(disable=not sys.stderr.isatty()) as bars:
        description, existed = prepare(
            source,
            options.output,
            encoder,
            threads=options.workers,
            progress=bars.advance,
        )
    return preparation.answer(options.output, description, existed)


def _lines(path: Path | None) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line] if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--add-tokens: {path} cannot be read as UTF-8: {error}") from error


main = partial(command.run, __doc__, arguments, work)


class _Bars:
    """One progress bar per stage of the work, over bytes of text (how many there will be is not known)."""

    def __init__(self, disable: bool) -> None:
        self.disable = disable
        self.bars: dict[str, tqdm] = {}

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def advance(self, stage: str, documents: int, size: int) -> None:
        """``documents`` more documents of ``size`` bytes are done."""
        if stage not in self.bars:
            name = {"tokenizer": "reading for the tokenizer", "tokens": "encoding"}[stage]
            self.bars[stage] = tqdm(desc=name, unit="B", unit_scale=True, disable=self.disable)
        self.bars[stage].update(size)


if __name__ == "__main__":
    sys.exit(main())
