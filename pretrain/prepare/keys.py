"""The file of a pipeline: which text is read, what is left out of it, and which corpus it becomes."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pretrain.config import reading
from pretrain.config.kinds import Count, Positive
from pretrain.config.section import Section
from pretrain.data.tokenizers.byte_level import LARGEST
from pretrain.errors import UserError

KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".warc": "warc", ".wet": "warc"}
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
MOST_TASKS = 10_000  # also of shards: each is two memory maps of every rank that reads the corpus


@dataclass(frozen=True)
class Read(Section):
    """The text: files, or a data set by its name. One of both."""

    files: tuple[str, ...] = ()
    """JSON lines, Parquet or WARC files; `*`, `?` and `**` are patterns."""
    dataset: str = ""
    """A data set of the Hugging Face hub, which is fetched when the work is begun."""
    split: str = "train"
    """Of a data set: part of its rows."""
    text: str = "text"
    """The key, or column, of a document's text; not for WARC files."""


@dataclass(frozen=True)
class Near(Section):
    """Near duplicates by MinHash and locality-sensitive hashing (Broder, 1997; Leskovec et al., "Mining of massive
    datasets", section 3.4): documents whose sets of shingles have a Jaccard similarity of (1 / bands) ** (1 / rows) are
    found with a probability of about 0.63; that is 0.72 here."""

    bands: Annotated[int, Field(ge=0, le=1000)] = 14
    """Parts of a signature, of which one must agree; 0: near duplicates stay."""
    rows: Annotated[int, Field(gt=0, le=100)] = 8
    """Hashes of a band."""
    words: Annotated[int, Field(gt=0, le=100)] = 5
    """Words of a shingle."""


@dataclass(frozen=True)
class Tokens(Section):
    """What the text becomes."""

    tokenizer: str = ""
    """A SentencePiece model, tokenizer.json or vocab.txt; empty: one is trained on the text that is left."""
    vocab_size: Annotated[int, Field(gt=0, le=LARGEST)] = 32_000
    """Pieces of a tokenizer that is trained."""
    kind: Literal["causal", "wordpiece", "wordpiece_cased"] = "causal"
    """For BERT: sentences of WordPiece."""
    least: Count = 128
    """Documents of fewer tokens are left out."""


@dataclass(frozen=True)
class Pipeline(Section):
    """From text to a corpus of shards."""

    output: str
    """The folder to make."""
    read: Read
    filters: tuple[dict[str, Any], ...] = ()
    """Rules, in this order: each a mapping from its name to its options."""
    exact: bool = True
    """Whether documents that are there twice are left out but for one."""
    near: Near = Near()
    tokens: Tokens = Tokens()
    tasks: Annotated[int, Field(gt=0, le=MOST_TASKS)] = 1
    """Parts that the work is cut into; each writes one shard."""
    samples: Positive = 5
    """Documents of each rule and reason that the report shows."""

    @property
    def files(self) -> list[Path]:
        """The files that are read, each once, in the order of their names."""
        return sorted({Path(name) for pattern in self.read.files for name in _matches(pattern)})


def _matches(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else [pattern]


def kind_of(file: Path) -> str:
    """How a file is read, by its name. Raises UserError for a name that does not tell."""
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSED]
    if not suffixes or suffixes[-1] not in KINDS:
        raise UserError(
            f"{file}: the kind is not known by its name; it must end in {', '.join(KINDS)} (then .gz or so)"
        )
    return KINDS[suffixes[-1]]


def load(path: Path) -> Pipeline:
    """Reads a pipeline.

    Raises UserError, with the place, for keys that are unknown, missing or of a wrong type, and for files that are not
    there. The rules are checked where they are made, in pretrain.prepare.rules.
    """
    raw = reading.read(path)
    try:
        pipeline = TypeAdapter(Pipeline).validate_python(raw)
    except ValidationError as error:
        raise UserError(reading.explain(error, Pipeline, str(path), raw)) from None
    if bool(pipeline.read.files) == bool(pipeline.read.dataset):
        raise UserError(f"{path}: read: give either files or a dataset")
    for number, pattern in enumerate(pipeline.read.files):
        if not [name for name in _matches(pattern) if Path(name).is_file()]:
            raise UserError(f"{path}: read.files[{number}]: there is no file {pattern}")
    for file in pipeline.files:
        kind_of(file)
    return pipeline
