"""The steps between datatrove's: text that is kept from one phase to the next, and the shards that it becomes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pretrain.data.corpus.corpus import AnyTokenizer
from pretrain.data.corpus.encoders import Encoded, Encoder
from pretrain.data.corpus.indexed import token_dtype, write_index
from pretrain.data.corpus.shards import FOLDER, edges_of
from pretrain.prepare.report import Removed
from pretrain.runtime.files import make_folder, write_json

BATCH = 256  # documents
SCHEMA = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.large_string())])


class Keep(PipelineStep):
    """Writes the documents of a task to one file, which `Kept` reads."""

    type, name = "WRITER", "kept text"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        make_folder(self.folder)
        path = self.folder / f"{rank:05d}.parquet"
        with pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for batch in _batches(data):
                columns = {"id": [d.id for d in batch], "text": [d.text for d in batch]}
                writer.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema=SCHEMA))


class Kept(PipelineStep):
    """Reads what a task has kept."""

    type, name = "READER", "kept text"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with pyarrow.parquet.ParquetFile(self.folder / f"{rank:05d}.parquet") as file:
            for batch in file.iter_batches(BATCH):
                for name, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield Document(text=text, id=name)


class TrainTokenizer(PipelineStep):
    """Trains the tokenizer on what is left of all tasks, up to `SEEN` bytes of it, and saves it."""

    type, name = "TOKENIZER", "training"
    SEEN = 1 << 30

    def __init__(self, folder: Path, encoder: Encoder[Any], left: list[PipelineStep], tasks: int) -> None:
        super().__init__()
        self.folder, self.encoder, self.left, self.tasks = folder, encoder, left, tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        make_folder(self.folder)
        self.encoder.train(self._texts, len(os.sched_getaffinity(0))).save(self.folder)

    def _texts(self) -> Iterator[str]:
        for rank in range(self.tasks):
            documents: Any = None
            for step in self.left:
                documents = step.run(documents, rank, self.tasks)
            seen = 0
            for document in documents:
                yield document.text
                seen += len(document.text)
                if seen > self.SEEN // self.tasks:
                    break


class WriteShard(PipelineStep):
    """Encodes the documents of a task and writes them as one shard, then its description."""

    type, name = "TOKENIZER", "shard"

    def __init__(
        self,
        folder: Path,
        described: Path,
        encoder: Encoder[Any],
        tokenizer: Callable[[], AnyTokenizer],
        least: int,
        removed: Removed,
    ) -> None:
        """folder: of the corpus. described: where the descriptions of shards go. least: tokens of a document."""
        super().__init__()
        self.folder, self.described, self.encoder, self.tokenizer = folder, described, encoder, tokenizer
        self.least, self.removed = least, removed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        tokenizer = self.tokenizer()
        dtype = token_dtype(tokenizer.size)
        prefix = self.folder / FOLDER / f"{rank:05d}"
        for folder in (prefix.parent, self.described):
            make_folder(folder)
        lengths: list[int] = []
        counts: list[int] = []
        state, size = xxhash.xxh3_128(), 0
        with self.removed as removed, open(prefix.with_suffix(".bin"), "wb") as file:
            for batch in _batches(data):
                for encoded in self._encoded(tokenizer, batch, rank, removed):
                    raw = encoded.tokens.astype(dtype).tobytes()
                    file.write(raw)
                    state.update(raw)
                    lengths += encoded.lengths
                    counts += encoded.counts
                    size += encoded.bytes
        bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        write_index(prefix.with_suffix(".idx"), np.array(lengths, dtype=np.int64), bounds, dtype)
        description = {
            "name": prefix.name,
            "documents": len(counts),
            "tokens": sum(lengths),
            "xxh3_128": state.hexdigest(),
            "edges": edges_of(prefix),
        }
        write_json(self.described / f"{rank:05d}.json", {"bytes": size, "shard": description})

    def _encoded(self, tokenizer: Any, batch: list[Document], rank: int, removed: Removed) -> Iterator[Encoded]:
        """Yields documents in tokens, without those of fewer than `least`."""
        encoded = self.encoder.encode(tokenizer, [document.text for document in batch], 1)
        if len(encoded.counts) < len(batch):  # a document that has no token is not among them
            if len(batch) == 1:
                removed.add("no tokens", batch[0].id, batch[0].text, rank)
            else:
                for document in batch:
                    yield from self._encoded(tokenizer, [document], rank, removed)
            return
        lengths, counts = np.array(encoded.lengths), np.array(encoded.counts)
        sizes = np.add.reduceat(lengths, np.cumsum(counts) - counts)
        stays, size = sizes >= self.least, encoded.bytes
        if stays.all():
            yield encoded
            return
        for nth in np.flatnonzero(~stays):
            document = batch[nth]
            size -= self.encoder.encode(tokenizer, [document.text], 1).bytes
            removed.add(f"fewer than {self.least} tokens", document.id, document.text, rank)
        if stays.any():
            tokens = encoded.tokens[np.repeat(stays, sizes)]
            yield Encoded(tokens, lengths[np.repeat(stays, counts)].tolist(), counts[stays].tolist(), size)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
