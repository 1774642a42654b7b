"""Documents out of text, JSON and Parquet files, or a data set by its name, through Hugging Face ``datasets``.

Only a data set that is asked for by name is downloaded; files are streamed from where they are.
"""

import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain.errors import UserError
from pretrain.runtime.documents import one_line
from pretrain.runtime.files import hash_of

Document = Literal["line", "paragraph", "file"]
KINDS = {".txt": "text", ".text": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
ALL = "train"  # the split that ``datasets`` puts local files into
BATCH = 256  # documents
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, TypeError, RuntimeError, LookupError)
"""What ``datasets`` and the decompressors raise for a file that is not what its name says, or is cut off."""


@dataclass(frozen=True)
class Source:
    """Files of one kind, or a data set.

    ``key`` is the column with the text (not in text files); ``document`` is what makes a row of text files; ``split``
    is a part of all rows, as ``datasets`` writes it ("train[:10%]"); ``join`` rows, one line each, make a document.
    """

    files: tuple[Path, ...] = ()
    key: str = "text"
    document: Document = "paragraph"
    split: str = ALL
    join: int = 1
    dataset: str | None = None

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.dataset):
            raise UserError("give either files or the name of a data set")
        if self.join < 1:
            raise UserError(f"{self.join} rows cannot make a document: join 1 or more")
        for file in self.files:
            if not file.is_file():
                raise UserError(f"{file} does not exist or is no file")
            if not file.stat().st_size:
                raise UserError(f"{file} is empty: leave it out")
        kinds = {_kind(file) for file in self.files}
        if len(kinds) > 1:
            raise UserError(
                f"files of several kinds ({', '.join(sorted(kinds))}) were given: prepare one kind at a time"
            )

    def __str__(self) -> str:
        if self.dataset:
            return f"data set {self.dataset}"
        return f"{self.files[0]}{f' and {len(self.files) - 1} more' if len(self.files) > 1 else ''}"

    @property
    def kind(self) -> str:
        """The name that ``datasets`` has for this kind of files."""
        return _kind(self.files[0]) if self.files else "dataset"

    def describe(self) -> dict[str, Any]:
        """What the documents depend on, for JSON: kind, options, and name, size and hash of each file."""
        description: dict[str, Any] = {"kind": self.kind}
        description |= {"document": self.document} if self.kind == "text" else {"key": self.key}
        description |= {"split": self.split} if self.split != ALL else {}
        description |= {"join": self.join} if self.join > 1 else {}
        return description | (
            {"dataset": self.dataset} if self.dataset else {"files": [_fingerprint(file) for file in self.files]}
        )

    def batches(self, skip: int = 0) -> Iterator[list[str]]:
        """Yields all documents but the first ``skip``, some at a time; a document without text is ""."""
        column = "text" if self.kind == "text" else self.key
        for batch in self._batches(skip * self.join):
            if column not in batch:
                raise UserError(f"{self} has no column {column!r} (it has {', '.join(batch)}): give --text-key")
            texts = batch[column]
            if not all(text is None or isinstance(text, str) for text in texts):
                raise UserError(f"column {column!r} of {self} is not text: give --text-key")
            rows = ["" if text is None or text.isspace() else text for text in texts]
            if self.join > 1:
                rows = ["\n".join(filter(None, rows[i : i + self.join])) for i in range(0, len(rows), self.join)]
            yield rows

    def _batches(self, skip: int) -> Iterator[dict[str, list[Any]]]:
        """Yields some rows at a time as columns. Raises UserError for a source that cannot be read."""
        import datasets  # takes half a second, and --help does not need it

        datasets.disable_progress_bars()
        try:
            yield from self._rows().skip(skip).iter(batch_size=BATCH * self.join)
        except (*DAMAGED, StopIteration, datasets.exceptions.DatasetGenerationError) as error:
            # ``datasets`` raises StopIteration for a file without a row.
            empty = StopIteration in (type(error), type(error.__cause__))
            raise UserError(f"cannot read {self}: {'no row is in it' if empty else _in_words(error)}") from error

    def _rows(self) -> Any:
        import datasets

        if self.dataset:
            return datasets.load_dataset(self.dataset, split=self.split)
        sample = {"sample_by": "document" if self.document == "file" else self.document} if self.kind == "text" else {}
        files = [str(file) for file in self.files]
        # A part of the rows can only be taken when they are counted: ``datasets`` then makes a copy in its cache.
        streaming = self.split == ALL
        return datasets.load_dataset(self.kind, data_files=files, split=self.split, streaming=streaming, **sample)


def _kind(file: Path) -> str:
    suffixes = [s for s in file.suffixes if s not in COMPRESSED]
    try:
        return KINDS[suffixes[-1]]
    except (IndexError, KeyError):
        raise UserError(
            f"{file}: the kind is not known by its name; it must end in {', '.join(KINDS)}"
            f" (then {', '.join(COMPRESSED)} or nothing)"
        ) from None


def _in_words(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "xxh3_128": hash_of(file)}
