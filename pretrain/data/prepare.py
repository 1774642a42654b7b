"""Turns documents into a corpus folder (see ``corpus``), once, and in a way that can be stopped and gone on with.

Everything is written to OUTPUT.partial, which is renamed when it is complete. While documents are encoded a journal
there says up to which row the tokens are safe; a second run with the same request cuts off what came after and goes on.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pretrain.data.corpus import DESCRIPTION, FORMAT_VERSION, TOKENIZER, TOKENS
from pretrain.data.indexed import token_dtype, write_index
from pretrain.data.sources import Source
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.train_tokenizer import train_tokenizer
from pretrain.errors import UserError

JOURNAL = "journal.json"
LENGTHS = "lengths.bin"  # int32 per document, until the index is written
EVERY = 16 << 20  # bytes of text between two entries of the journal
CHECKED = 1 << 20  # bytes of text on which a tokenizer's nesting is checked

Progress = Callable[[str, int, int], None]  # stage ("tokenizer" or "tokens"), documents and bytes since the last call


@dataclass
class Journal:
    """How far the encoding is: rows of the source, and what the files hold of them."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    bytes: int = 0


def prepare(
    source: Source,
    output: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int = 32_000,
    workers: int = 1,
    progress: Progress = lambda *_: None,
) -> tuple[dict[str, Any], bool]:
    """Write the corpus folder ``output``: every row of ``source`` that has text, as one document.

    ``tokenizer`` is a SentencePiece model (file or folder); without one, one of ``vocab_size`` pieces is trained on the
    text. Gives the description of the corpus, and whether it was there already.

    Raises UserError if ``output`` holds something else, if there is no text, if the tokenizer does not do, or if
    another process is preparing the same output.
    """
    given = Tokenizer.load(tokenizer) if tokenizer is not None else None
    request = {"source": source.describe(), **({"tokenizer": given.hash} if given else {"vocab_size": vocab_size})}
    if output.exists():
        return _existing(output, request), True
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _only_one(partial):
        _drop_other_request(partial, request)
        if given is None:
            given = _trained(partial, source, vocab_size, workers, progress)
        given.save(partial / TOKENIZER)
        _check_nesting(given, source)
        done = _encode(partial, source, given, workers, progress)
        if not done.documents:
            raise UserError(f"there is no text in {', '.join(map(str, source.files))}: every row is empty")
        description = _finish(partial, given, request, done)
        os.replace(partial, output)
    return description, False


def _existing(output: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        description = json.loads((output / DESCRIPTION).read_text())
        found = description["request"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{output} exists and is no corpus: choose another --output") from None
    if found != request:
        changed = [key for key in {**found, **request} if found.get(key) != request.get(key)]
        raise UserError(
            f"{output} was prepared from another {' and '.join(changed)}: remove it or choose another --output"
        )
    return description


@contextmanager
def _only_one(partial: Path) -> Iterator[None]:
    with open(partial / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is working in {partial}: wait for it, or stop it") from None
        yield


def _drop_other_request(partial: Path, request: dict[str, Any]) -> None:
    """What an interrupted run left is of use only to the same request."""
    file = partial / "request.json"
    if not file.exists() or json.loads(file.read_text()) != request:
        (partial / JOURNAL).unlink(missing_ok=True)
        (partial / TOKENIZER / "tokenizer.model").unlink(missing_ok=True)
        _write_json(file, request)


def _trained(partial: Path, source: Source, vocab_size: int, workers: int, progress: Progress) -> Tokenizer:
    file = partial / TOKENIZER / "tokenizer.model"
    if not file.exists():

        def texts() -> Iterator[str]:
            for batch in source.batches():
                progress("tokenizer", len(batch), sum(len(text.encode()) for text in batch))
                yield from batch

        if not any(text for batch in source.batches() for text in batch):
            raise UserError(f"there is no text in {', '.join(map(str, source.files))}: every row is empty")
        Tokenizer(train_tokenizer(texts(), vocab_size, workers), str(file)).save(file.parent)
    return Tokenizer.load(file)


def _check_nesting(tokenizer: Tokenizer, source: Source) -> None:
    """Compare the table with the truncated tokenizer on real text: a model that was not made by BPE training may not
    nest.
    """
    texts, size = [], 0
    for batch in source.batches():
        texts += batch
        size += sum(map(len, batch))
        if size > CHECKED:
            break
    legal = np.flatnonzero(tokenizer.age.cut)
    full = [np.array(ids, dtype=np.int32) for ids in tokenizer.processor().encode(texts)]
    for vocab in {int(legal[0]), int(legal[len(legal) // 4])}:
        table = tokenizer.segmentation(vocab)
        for ids, expected in zip(full, tokenizer.processor(vocab).encode(texts), strict=True):
            if table.apply(ids).tolist() != expected:
                raise UserError(
                    f"{tokenizer.name} cannot be grown by merge age: with its first {vocab} pieces this text is cut"
                    " otherwise than its pieces are; leave out --tokenizer to train one that can"
                )


def _encode(partial: Path, source: Source, tokenizer: Tokenizer, workers: int, progress: Progress) -> Journal:
    journal_file = partial / JOURNAL
    done = Journal(**json.loads(journal_file.read_text())) if journal_file.exists() else Journal()
    dtype = token_dtype(tokenizer.size)
    processor = tokenizer.processor()
    with open(partial / f"{TOKENS}.bin", "ab") as tokens, open(partial / LENGTHS, "ab") as lengths:
        tokens.truncate(done.tokens * dtype.itemsize)
        lengths.truncate(done.documents * 4)
        progress("tokens", done.documents, done.bytes)
        saved = done.bytes
        for batch in source.batches(skip=done.rows):
            encoded = [[*ids, tokenizer.eos] for ids in processor.encode(batch, num_threads=workers) if ids]
            flat = np.array([t for ids in encoded for t in ids], dtype=np.int64)
            tokens.write(flat.astype(dtype).tobytes())
            lengths.write(np.array([len(ids) for ids in encoded], dtype="<i4").tobytes())
            size = int(tokenizer.piece_bytes[flat].sum()) - tokenizer.prefix_bytes * len(encoded)
            done.rows += len(batch)
            done.documents += len(encoded)
            done.tokens += len(flat)
            done.bytes += size
            progress("tokens", len(encoded), size)
            if done.bytes - saved >= EVERY:
                _sync(tokens, lengths)
                _write_json(journal_file, asdict(done))
                saved = done.bytes
        _sync(tokens, lengths)
    return done


def _finish(partial: Path, tokenizer: Tokenizer, request: dict[str, Any], done: Journal) -> dict[str, Any]:
    lengths = np.fromfile(partial / LENGTHS, dtype="<i4")
    write_index(partial / f"{TOKENS}.idx", lengths, np.arange(len(lengths) + 1), token_dtype(tokenizer.size))
    description = {
        "format_version": FORMAT_VERSION,
        "documents": done.documents,
        "tokens": done.tokens,
        "bytes": done.bytes,
        "vocab_size": tokenizer.size,
        "tokenizer": tokenizer.hash,
        "xxh3_128": _hash_file(partial / f"{TOKENS}.bin"),
        "request": request,
    }
    for name in (LENGTHS, JOURNAL, "request.json", "lock"):
        (partial / name).unlink(missing_ok=True)
    _write_json(partial / DESCRIPTION, description)
    return description


def _hash_file(path: Path) -> str:
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            state.update(block)
    return state.hexdigest()


def _sync(*files: Any) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        _sync(file)
    os.replace(temporary, path)
