"""Turns documents into a corpus folder (see ``corpus``), once, and in a way that can be stopped and gone on with.

Everything is written to OUTPUT.partial, which is renamed when it is complete. While documents are encoded a journal
there says up to which row the tokens are safe; a second run with the same request cuts off what came after and goes on.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from pretrain.data.corpus.corpus import DESCRIPTION, FORMAT_VERSION, TOKENIZER, TOKENS, AnyTokenizer
from pretrain.data.corpus.encoders import Encoder
from pretrain.data.corpus.indexed import token_dtype, write_index
from pretrain.data.corpus.sources import Source
from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import CLOSED, Count
from pretrain.runtime.files import Lock, hash_of, write_json

JOURNAL, LOCK = "journal.json", "lock"
LENGTHS = "lengths.bin"  # the length of each sequence in tokens (int32), until the index is written
COUNTS = "counts.bin"  # the length of each document in sequences (int32), until the index is written
EVERY = 16 << 20  # bytes of text between two entries of the journal
THREADS = 1024  # the most that may be asked for
CHECKED = 1 << 20  # characters of text on which a tokenizer is checked

OnProgress = Callable[[str, int, int], None]  # stage ("tokenizer" or "tokens"), documents and bytes since the last call


class Prepared(TypedDict):
    """The part of a corpus's description that the command line tells."""

    request: dict[str, Any]
    documents: Count
    bytes: Count
    tokens: Count
    vocab_size: Count


@with_config(CLOSED)
class Rows(TypedDict):
    """A journal as it is in its file, with the fields of `Journal`."""

    rows: Count
    documents: Count
    sequences: Count
    tokens: Count
    bytes: Count


@dataclass
class Journal:
    """How far the encoding is: rows of the source, and what the files hold of them."""

    rows: int = 0
    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    bytes: int = 0


def prepare(
    source: Source,
    output: Path,
    encoder: Encoder[Any],
    *,
    threads: int = 1,
    progress: OnProgress = lambda *_: None,
) -> tuple[dict[str, Any], bool]:
    """Write the corpus folder ``output``: every row of ``source`` that has text, as one document.

    Gives the description of the corpus, and whether it was there already.

    Raises UserError if ``output`` holds something else, if there is no text, if the tokenizer does not do, if another
    process is preparing the same output, or if a file cannot be read or written.
    """
    encoder.check_size()
    if not 1 <= threads <= THREADS:
        raise UserError(f"--workers {threads}: give 1 to {THREADS}")
    request = {"source": source.describe(), **encoder.request()}
    if output.exists():
        return existing(output, request), True
    partial = output.with_name(output.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with Lock(partial / LOCK):
            if output.exists():  # another process was first
                shutil.rmtree(partial, ignore_errors=True)
                return existing(output, request), True
            _drop_other_request(partial, request)
            tokenizer = _tokenizer(partial / TOKENIZER, source, encoder, threads, progress)
            encoder.check(tokenizer, _beginning(source))
            done = _encode(partial, source, encoder, tokenizer, threads, progress)
            description = _finish(partial, tokenizer, request, done)
            os.replace(partial, output)
            (output / LOCK).unlink()
    except OSError as error:
        raise UserError(
            f"{output} cannot be made: {error.strerror} ({error.filename or partial}); put that right and run it "
            "again: it goes on where it was"
        ) from error
    return description, False


def existing(output: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        description = documents.read(output / DESCRIPTION, Prepared)
    except UserError as error:
        raise UserError(f"{output} exists and is no corpus: choose another --output ({error})") from None
    earlier = description["request"]
    if earlier != request:
        changed = [key for key in {**earlier, **request} if earlier.get(key) != request.get(key)]
        raise UserError(
            f"{output} was prepared from another {' and '.join(changed)}: remove it or choose another --output"
        )
    return dict(description)


def _drop_other_request(partial: Path, request: dict[str, Any]) -> None:
    """Removes what an interrupted run with another request has left: it is of use only to the same request."""
    file = partial / "request.json"
    if _written_before(file, documents.Object) != request:
        (partial / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(partial / TOKENIZER, ignore_errors=True)
        write_json(file, request)


def _written_before(file: Path, kind: Any) -> dict[str, Any] | None:
    """What an interrupted run has written to a file; None if it is absent or damaged, so that all is done again."""
    try:
        content: dict[str, Any] = documents.read(file, kind)
    except UserError:
        return None
    return content


def _tokenizer(folder: Path, source: Source, encoder: Encoder[Any], threads: int, progress: OnProgress) -> AnyTokenizer:
    """The tokenizer of the corpus, saved in its folder."""

    def texts() -> Iterator[str]:
        for batch in source.batches():
            progress("tokenizer", len(batch), sum(len(text.encode()) for text in batch))
            yield from batch

    if not _any_text(source):
        raise UserError(f"there is no text in {source}: every row is empty")
    if encoder.given:
        encoder.given.save(folder)
    elif not (folder / encoder.file).exists():
        encoder.train(texts, threads).save(folder)
    return encoder.load(folder)


def _any_text(source: Source) -> bool:
    return any(text for batch in source.batches() for text in batch)


def _beginning(source: Source) -> list[str]:
    texts: list[str] = []
    for batch in source.batches():
        texts += batch
        if sum(map(len, texts)) > CHECKED:
            break
    return texts


def _encode(
    partial: Path, source: Source, encoder: Encoder[Any], tokenizer: AnyTokenizer, threads: int, progress: OnProgress
) -> Journal:
    journal_file = partial / JOURNAL
    done = Journal(**(_written_before(journal_file, Rows) or {}))
    dtype = token_dtype(tokenizer.size)
    with (
        open(partial / f"{TOKENS}.bin", "ab") as tokens,
        open(partial / LENGTHS, "ab") as lengths,
        open(partial / COUNTS, "ab") as counts,
    ):
        tokens.truncate(done.tokens * dtype.itemsize)
        lengths.truncate(done.sequences * 4)
        counts.truncate(done.documents * 4)
        progress("tokens", done.documents, done.bytes)
        saved = done.bytes
        for batch in source.batches(skip=done.rows):
            encoded = encoder.encode(tokenizer, batch, threads)
            tokens.write(encoded.tokens.astype(dtype).tobytes())
            lengths.write(np.array(encoded.lengths, dtype="<i4").tobytes())
            counts.write(np.array(encoded.counts, dtype="<i4").tobytes())
            done.rows += len(batch)
            done.documents += len(encoded.counts)
            done.sequences += len(encoded.lengths)
            done.tokens += len(encoded.tokens)
            done.bytes += encoded.bytes
            progress("tokens", len(encoded.counts), encoded.bytes)
            if done.bytes - saved >= EVERY:
                _sync(tokens, lengths, counts)
                write_json(journal_file, asdict(done))
                saved = done.bytes
        _sync(tokens, lengths, counts)
    return done


def _finish(partial: Path, tokenizer: AnyTokenizer, request: dict[str, Any], done: Journal) -> dict[str, Any]:
    lengths, counts = (np.fromfile(partial / name, dtype="<i4") for name in (LENGTHS, COUNTS))
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    write_index(partial / f"{TOKENS}.idx", lengths, bounds, token_dtype(tokenizer.size))
    description = {
        "format_version": FORMAT_VERSION,
        "documents": done.documents,
        "tokens": done.tokens,
        "bytes": done.bytes,
        "vocab_size": tokenizer.size,
        "tokenizer": tokenizer.hash,
        "xxh3_128": hash_of(partial / f"{TOKENS}.bin"),
        "request": request,
    }
    for name in (JOURNAL, LENGTHS, COUNTS, "request.json"):  # the journal goes first: without it the others are ignored
        (partial / name).unlink(missing_ok=True)
    write_json(partial / DESCRIPTION, description)
    return description


def _sync(*files: Any) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())
