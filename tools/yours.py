"""Grow what you have: makes what a curriculum with `yours` begins with, and exports what it ends with.

--begin imports the model as the finished first stage, if its shape is the one in the file, and prepares the corpus in
the model's own tokens; what is there already is left alone. --end exports the last stage. slurm/curriculum.sh calls
both; see docs/yours.md.

examples:
  python tools/yours.py configs/yours/qwen3.yaml --begin
  python tools/yours.py configs/yours/qwen3.yaml --end
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from growth import Architecture
from pretrain import config
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import Curriculum
from pretrain.config.keys import Yours
from pretrain.data.corpus.encoders import ByteLevelEncoder, SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.tokenizers.byte_level import is_byte_level
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.imports import import_model, shape_of
from pretrain.runtime.storage import is_url

SHARD = 4 * 10**9  # bytes: as tools/export_hf.py


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a curriculum with the section yours")
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--begin", action="store_true", help="import the model and prepare its corpus")
    when.add_argument("--end", action="store_true", help="export the model of the last stage")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a file without `yours`, a model of another shape, and as import, corpus and export do."""
    curriculum = config.load(options.config)
    if curriculum.yours is None:
        raise UserError(f"{curriculum.path}: there is no section yours, so its first stage begins with nothing")
    lines = list((_begin if options.begin else _end)(curriculum, curriculum.yours))
    return command.Answer("\n".join(lines), {"done": lines})


def _begin(curriculum: Curriculum, yours: Yours) -> Iterator[str]:
    source, first = Path(yours.model), curriculum.stages[0]
    _compare(curriculum, shape_of(source), first.model.architecture())
    folders = _folders(curriculum) if yours.text else []
    imported = import_model(source, curriculum.folder / first.name, progress=sys.stderr.isatty())
    there = " (is there already)" if imported.existed else ""
    yield f"{source} -> {imported.checkpoint}{there}: {imported.parameters:,} parameters"
    for corpus in folders:
        texts = Source(tuple(map(Path, yours.text)))
        own = ByteLevelEncoder(source) if is_byte_level(source) else SentencePieceEncoder(source / "tokenizer.model")
        description, existed = prepare(texts, Path(corpus), own)
        there = " (is there already)" if existed else ""
        yield f"{', '.join(yours.text)} -> {corpus}{there}: {description['tokens']:,} tokens"


def _folders(curriculum: Curriculum) -> list[str]:
    """The corpora that are made of yours.text. Raises UserError for several in a stage, and for one at a URL."""
    folders = list(dict.fromkeys(stage.data.corpus for stage in curriculum.stages))
    for corpus in folders:
        if not corpus or is_url(corpus):
            raise UserError(
                f"{curriculum.path}: yours.text becomes the folder data.corpus, and a stage has "
                f"{corpus or 'data.corpora'}: prepare what it has with tools/prepare_data.py --tokenizer, and leave "
                "yours.text out"
            )
    return folders


def _compare(curriculum: Curriculum, given: Architecture, written: Architecture) -> None:
    """Raises UserError, with what would fit, where the first stage is not the model."""
    if (given.family, given.sizes, given.kinds) != (written.family, written.sizes, written.kinds):
        shape = ", ".join(f"{axis}: {size}" for axis, size in given.sizes.items())
        raise UserError(
            f"{curriculum.path}: stages[0].model is not the shape of {curriculum.yours and curriculum.yours.model}: "
            f"write model: {{family: {given.family}, {shape}}}"
        )


def _end(curriculum: Curriculum, yours: Yours) -> Iterator[str]:
    if not yours.export:
        return
    checkpoint = locate(curriculum.folder / curriculum.stages[-1].name, finished=True)
    exported = export(checkpoint, Path(yours.export), shard_bytes=SHARD, progress=sys.stderr.isatty())
    there = " (is there already)" if exported.existed else ""
    yield f"{checkpoint} -> {exported.folder}{there}: {exported.parameters:,} parameters"


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())
