"""Documents out of local text, JSON and Parquet files, through Hugging Face ``datasets``; nothing is downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from pretrain.errors import UserError

Document = Literal["line", "paragraph", "file"]
KINDS = {".txt": "text", ".text": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
BATCH = 256  # documents


@dataclass(frozen=True)
class Source:
    """Files of one kind. ``key`` is the column with the text (JSON, Parquet); ``document`` is what makes one in text
    files."""

    files: tuple[Path, ...]
    key: str = "text"
    document: Document = "paragraph"

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("no files were given")
        for file in self.files:
            if not file.is_file():
                raise UserError(f"{file} does not exist or is no file")
        kinds = {_kind(file) for file in self.files}
        if len(kinds) > 1:
            raise UserError(
                f"files of several kinds ({', '.join(sorted(kinds))}) were given: prepare one kind at a time"
            )

    def describe(self) -> dict[str, Any]:
        """What the documents depend on, for JSON: kind, options, and name, size and hash of each file."""
        kind = _kind(self.files[0])
        option = {"document": self.document} if kind == "text" else {"key": self.key}
        return {"kind": kind, **option, "files": [_fingerprint(file) for file in self.files]}

    def batches(self, skip: int = 0) -> Iterator[list[str]]:
        """The documents from row ``skip`` on, some at a time; "" for a row without text."""
        import datasets  # half a second, and not needed to show --help

        datasets.disable_progress_bars()
        kind = _kind(self.files[0])
        sample = {"sample_by": "document" if self.document == "file" else self.document} if kind == "text" else {}
        try:
            rows = datasets.load_dataset(
                kind, data_files=[str(f) for f in self.files], split="train", streaming=True, **sample
            )
            for batch in rows.skip(skip).iter(batch_size=BATCH):
                if self._column not in batch:
                    raise UserError(
                        f"{self.files[0]} has no column {self._column!r} (it has {', '.join(batch)}): give --text-key"
                    )
                texts = batch[self._column]
                if not all(text is None or isinstance(text, str) for text in texts):
                    raise UserError(f"column {self._column!r} of {self.files[0]} is not text: give --text-key")
                yield ["" if text is None or text.isspace() else text for text in texts]
        except (datasets.exceptions.DatasetGenerationError, UnicodeDecodeError, ValueError, OSError) as error:
            raise UserError(
                f"cannot read {self.files[0]}{' and others' if len(self.files) > 1 else ''}: {error}"
            ) from error

    @property
    def _column(self) -> str:
        return "text" if _kind(self.files[0]) == "text" else self.key


def _kind(file: Path) -> str:
    suffixes = [s for s in file.suffixes if s not in COMPRESSED]
    try:
        return KINDS[suffixes[-1]]
    except (IndexError, KeyError):
        raise UserError(
            f"{file}: the kind is not known by its name; it must end in {', '.join(KINDS)}"
            f" (then {', '.join(COMPRESSED)} or nothing)"
        ) from None


def _fingerprint(file: Path) -> dict[str, Any]:
    state = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 24):
            state.update(block)
    return {"name": file.name, "bytes": file.stat().st_size, "xxh3_128": state.hexdigest()}
