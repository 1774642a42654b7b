"""The memory of a rank that reads a corpus of many documents, page cache apart.

The corpus is sparse: its shards are one file under many names, of documents of a zero each token, so that 10^8
documents of 64 tokens take 150 MB of the disk. Of each size, in a process of its own: the text is opened, two windows
of samples are made and the held-out text is read. *peak* is what Python and numpy had allocated at most, as tracemalloc
says; *anonymous* is what the kernel counts as the process's own at the end.
"""

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report import Report
from pretrain.cli.command import positive
from pretrain.config.curriculum import curriculum_of
from pretrain.data.corpus.corpus import DESCRIPTION, FORMAT_VERSION, TOKENIZER
from pretrain.data.corpus.indexed import write_index
from pretrain.data.corpus.shards import FOLDER, edges_of
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.train_sentencepiece import train_tokenizer
from pretrain.families.text import open_feed

LENGTH = 64  # tokens of a document
SHARD = 10**6  # documents
VOCAB = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py documents`."""
    parser.add_argument(
        "--documents", type=positive, default=10**8, help="of the largest corpus (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> Report:
    """Measure corpora of a hundredth, a tenth and all of the documents."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Tokenizer(train_tokenizer([f"{n:b} is the number {n}" for n in range(400)], VOCAB), "numbers")
        for documents in tqdm([max(1000, options.documents // part) for part in (100, 10, 1)]):
            folder = Path(name) / str(documents)
            sparse(folder, tokenizer, documents, min(SHARD, documents))
            with ProcessPoolExecutor(1, get_context("spawn")) as apart:
                rows.append({"documents": documents, **apart.submit(measure, folder).result()})
    return Report("Memory of a rank that reads a corpus", {"tokens a document": LENGTH, "shard": SHARD}, rows, ())


def sparse(folder: Path, tokenizer: Tokenizer, documents: int, shard: int) -> None:
    """A corpus of so many documents of `LENGTH` tokens 0, in shards of `shard` of them that are one file; the last
    shard is whole."""
    (folder / FOLDER).mkdir(parents=True)
    tokenizer.save(folder / TOKENIZER)
    first, count = folder / FOLDER / "00000", -(-documents // shard)
    with first.with_suffix(".bin").open("wb") as file:
        file.truncate(shard * LENGTH * 2)
    write_index(first.with_suffix(".idx"), np.full(shard, LENGTH), np.arange(shard + 1), np.dtype(np.uint16))
    known = {"documents": shard, "tokens": shard * LENGTH, "xxh3_128": "", "edges": edges_of(first)}
    shards: list[Any] = [{"name": f"{number:05d}", **known} for number in range(count)]
    for other in shards[1:]:
        for suffix in (".bin", ".idx"):
            os.link(first.with_suffix(suffix), (folder / FOLDER / other["name"]).with_suffix(suffix))
    sizes = {"documents": count * shard, "tokens": count * shard * LENGTH, "bytes": count * shard * LENGTH}
    about = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.hash,
        "xxh3_128": str(documents),
        "shards": shards,
    }
    (folder / DESCRIPTION).write_text(json.dumps({**about, **sizes}))


def measure(folder: Path) -> dict[str, Any]:
    """What a rank needs to read a corpus; see the module's docstring."""
    raw = {
        "name": "sparse",
        "data": {"corpus": str(folder), "window": 64},
        "model": {"vocab": VOCAB, "hidden": 64, "layers": 1, "heads": 1, "ffn": 64},
        "train": {
            "seq_len": 512,
            "global_batch": 1,
            "micro_batch": 1,
            "lr": 1e-3,
            "tokens": 10**9,
            "eval_bytes": 10**5,
        },
        "stages": [{"name": "only"}],
    }
    stage = curriculum_of(raw, Path("sparse.yaml")).stages[0]
    began = time.monotonic()
    tracemalloc.start()
    feed = open_feed(stage)
    feed.seek(None)
    feed.take(128, 0.0, 0, 1)
    feed.held_out(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous = int(status["RssAnon"].split()[0]) * 1024
    return {"peak_MB": peak / 1e6, "anonymous_MB": anonymous / 1e6, "seconds": time.monotonic() - began}
