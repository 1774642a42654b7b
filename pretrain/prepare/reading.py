"""Documents out of JSON lines, Parquet and WARC files, or a data set: each task reads a part of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pretrain.data.corpus.sources import DAMAGED
from pretrain.errors import UserError
from pretrain.prepare.keys import COMPRESSED, Read, kind_of
from pretrain.prepare.report import Removed
from pretrain.runtime.files import make_folder, write_json

PART = 64 << 20  # bytes of an uncompressed file of JSON lines that are one part of it


class Part(NamedTuple):
    """A part of a file: the whole of it, a range of bytes, or a row group."""

    file: Path
    number: int = 0
    parts: int = 1


def parts_of(file: Path) -> list[Part]:
    """A file in parts that can be read alone. Raises UserError for one that cannot be read."""
    if kind_of(file) == "parquet":
        import pyarrow.parquet

        with _damage(file):
            count = pyarrow.parquet.ParquetFile(file).num_row_groups
    else:
        count = 1 if kind_of(file) == "warc" or file.suffix in COMPRESSED else -(-file.stat().st_size // PART)
    return [Part(file, number, count) for number in range(count)]


class ReadText(PipelineStep):
    """Yields the documents of a task's parts; rows without text, and lines that are no JSON, are counted as removed."""

    type, name = "READER", "text"

    def __init__(self, read: Read, files: list[Path], removed: Removed, counts: Path) -> None:
        super().__init__()
        self.read, self.files, self.removed, self.counts = read, files, removed, counts

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Raises UserError for a file that is damaged, and for a column that is not there."""
        read = {"documents": 0, "bytes": 0}
        with self.removed as removed:
            for name, text in self._texts(rank, world_size):
                data_size = len(text.encode(errors="replace")) if isinstance(text, str) else 0
                read["documents"] += 1
                read["bytes"] += data_size
                if not isinstance(text, str):
                    removed.add("no text" if text is None else "no JSON", name, str(text or ""), rank)
                elif not text.strip():
                    removed.add("no text", name, text, rank)
                else:
                    yield Document(text=text.encode(errors="replace").decode(), id=name)
        make_folder(self.counts)
        write_json(self.counts / f"{rank:05d}.json", read)

    def _texts(self, rank: int, world_size: int) -> Iterator[tuple[str, Any]]:
        """Yields names and texts; no string where a row has none, bytes where a line is no JSON."""
        if self.read.dataset:
            yield from self._rows(rank, world_size)
            return
        for part in [part for file in self.files for part in parts_of(file)][rank::world_size]:
            with _damage(part.file):
                yield from {"jsonl": self._lines, "parquet": self._columns, "warc": self._records}[kind_of(part.file)](
                    part
                )

    def _lines(self, part: Part) -> Iterator[tuple[str, Any]]:
        size = part.file.stat().st_size
        begin, end = (size * number // part.parts for number in (part.number, part.number + 1))
        with fsspec.open(str(part.file), "rb", compression="infer") as file:
            at = begin
            if begin:  # a line belongs to the part in which it begins
                file.seek(begin - 1)
                at += len(file.readline()) - 1
            for line in file:
                if part.parts > 1 and at >= end:
                    return
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if line.strip():
                    text = row.get(self.read.text) if isinstance(row, dict) else line
                    self._check(part.file, text, row if isinstance(row, dict) and at == begin else {})
                    yield f"{part.file}:{at}", text
                at += len(line)

    def _columns(self, part: Part) -> Iterator[tuple[str, Any]]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(part.file) as file:
            if self.read.text not in file.schema_arrow.names:
                raise self._no_column(part.file, file.schema_arrow.names)
            for batch in file.iter_batches(256, row_groups=[part.number], columns=[self.read.text]):
                for number, text in enumerate(batch.column(0).to_pylist()):
                    self._check(part.file, text, {})
                    yield f"{part.file}:{part.number}:{number}", text

    def _records(self, part: Part) -> Iterator[tuple[str, Any]]:
        """Plain text of a WET file as it is; of a page's response, the text that resiliparse finds in its HTML."""
        from fastwarc.warc import ArchiveIterator, WarcRecordType
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding

        wanted = WarcRecordType.response | WarcRecordType.conversion
        with fsspec.open(str(part.file), "rb", compression="infer") as file:
            for record in ArchiveIterator(file, record_types=wanted):
                content = record.reader.read()
                name = str(record.headers.get("WARC-Target-URI") or record.record_id)
                if record.record_type == WarcRecordType.conversion:
                    yield name, content.decode(errors="replace")
                elif "html" in (record.http_content_type or ""):
                    page = bytes_to_str(content, record.http_charset or detect_encoding(content) or "utf-8")
                    yield name, extract_plain_text(page, main_content=True)

    def _rows(self, rank: int, world_size: int) -> Iterator[tuple[str, Any]]:
        rows = load_dataset(self.read)
        if self.read.text not in rows.column_names:
            raise self._no_column(self.read.dataset, rows.column_names)
        part = rows.select_columns([self.read.text]).shard(world_size, rank, contiguous=True)
        for batch_number, batch in enumerate(part.iter(256)):
            for number, text in enumerate(batch[self.read.text]):
                yield f"{self.read.dataset}:{rank}:{batch_number * 256 + number}", text

    def _check(self, file: Path, text: Any, row: dict[str, Any]) -> None:
        if row and self.read.text not in row:
            raise self._no_column(file, row)
        if not isinstance(text, (str, bytes, type(None))):
            raise UserError(f"{self.read.text!r} of {file} is not text: give the key of the text as read.text")

    def _no_column(self, where: Path | str, names: Any) -> UserError:
        return UserError(f"{where} has no {self.read.text!r} (it has {', '.join(names)[:200]}): give read.text")


def load_dataset(read: Read) -> Any:
    """The rows of a data set, fetched if they are not in the cache. Raises UserError where they cannot be had."""
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(read.dataset, split=read.split)
    except (*DAMAGED, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"read.dataset: {read.dataset} cannot be had: {str(error).splitlines()[0]}") from error


class _damage:
    """Turns what readers raise for a damaged file into a UserError that names it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DAMAGED) and not isinstance(error, UserError):
            raise UserError(
                f"{self.file}: damaged, or not what its name says: {str(error).splitlines()[:1]}"
            ) from error
