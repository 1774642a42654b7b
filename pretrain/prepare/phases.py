"""The phases of a pipeline: each is a number of tasks that do not know of each other, and begins when the one before it
is done.

    clean        text is read, and the rules remove what they remove
    exact        of each document, the hash of its text
    exact-find   which documents are there twice
    near         of each document that is there once, a MinHash signature
    near-find    documents that agree in a band of it, a task for each band
    near-groups  of each group of such documents, the one that stays
    tokenizer    is trained, if none was given
    tokens       what is left becomes shards
    corpus       the description of all shards, and the report
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
    exact_dedup,
    minhash,
)
from datatrove.utils.hashing import HashConfig
from tqdm import tqdm

from pretrain.data.corpus.corpus import DESCRIPTION, FORMAT_VERSION, TOKENIZER, AnyTokenizer
from pretrain.data.corpus.encoders import Encoder
from pretrain.errors import UserError
from pretrain.prepare import report
from pretrain.prepare.keys import Pipeline
from pretrain.prepare.reading import ReadText
from pretrain.prepare.report import Removed
from pretrain.prepare.rules import make_rules
from pretrain.prepare.steps import Keep, Kept, TrainTokenizer, WriteShard
from pretrain.prepare.words import WORDS
from pretrain.runtime import documents
from pretrain.runtime.files import write_file, write_json

exact_dedup.tqdm = minhash.tqdm = partial(tqdm, disable=True)  # a bar for each file would hide what is said

WORK = "work"  # a folder in the corpus's, until the corpus is done
BUFFER = 1000  # signatures that are read at once


@dataclass(frozen=True)
class Phase:
    """Steps that some tasks do, each for a part of the text."""

    name: str
    tasks: int
    steps: Callable[[], list[PipelineStep]]


def content_of(document: Document) -> bytes:
    """What makes documents the same."""
    return document.text.encode()


class Work:
    """A pipeline and the folder in which it is worked on; `phases` lists what is done."""

    def __init__(
        self, pipeline: Pipeline, folder: Path, encoder: Encoder[Any], request: dict[str, Any], where: str
    ) -> None:
        """where: the pipeline's file, for errors. Raises UserError for rules that are unknown or cannot be used."""
        self.pipeline, self.folder, self.encoder, self.request = pipeline, folder, encoder, request
        self.work = folder / WORK
        self.rules = make_rules(pipeline.filters, self.work / "removed", pipeline.samples, where)
        near = pipeline.near
        # Not datatrove's default, which hashes text in a way that xxhash 4 refuses.
        sha1 = HashConfig(hash_fc="sha1")
        self.minhash = MinhashConfig(near.words, near.bands, near.rows, hash_config=sha1)
        self.exact = ExactDedupConfig(content_getter=content_of)

    @property
    def phases(self) -> list[Phase]:
        """The phases, in their order."""
        tasks, near = self.pipeline.tasks, self.pipeline.near.bands
        phases = [Phase("clean", tasks, self._clean)]
        if self.pipeline.exact:
            phases += [Phase("exact", tasks, self._exact), Phase("exact-find", 1, self._exact_find)]
        if near:
            phases += [
                Phase("near", tasks, self._near),
                Phase("near-find", near, self._near_find),
                Phase("near-groups", 1, self._near_groups),
            ]
        if not self.encoder.given:
            phases.append(Phase("tokenizer", 1, self._tokenizer))
        return [*phases, Phase("tokens", tasks, self._tokens), Phase("corpus", 1, lambda: [self._corpus])]

    def load_tokenizer(self) -> AnyTokenizer:
        """The tokenizer of the corpus, from its folder."""
        tokenizer: AnyTokenizer = self.encoder.load(self.folder / TOKENIZER)
        return tokenizer

    def _at(self, name: str) -> str:
        return str(self.work / name)

    def _removed(self, rule: str) -> Removed:
        return Removed(self.work / "removed", rule, self.pipeline.samples)

    def _clean(self) -> list[PipelineStep]:
        read = ReadText(self.pipeline.read, self.pipeline.files, self._removed("read"), self.work / "read")
        return [read, *self.rules, Keep(self.work / "clean")]

    def _exact(self) -> list[PipelineStep]:
        return [Kept(self.work / "clean"), ExactDedupSignature(self._at("exact"), self.exact)]

    def _exact_find(self) -> list[PipelineStep]:
        return [ExactFindDedups(self._at("exact"), self._at("exact-found"), self.exact, lines_to_buffer=BUFFER)]

    def _once(self, removed: Removed | None = None) -> list[PipelineStep]:
        """Documents that are there once; `removed` counts the others, in one phase of those that leave them out."""
        kept: list[PipelineStep] = [Kept(self.work / "clean")]
        return kept + ([ExactDedupFilter(self._at("exact-found"), self.exact, removed)] if self.pipeline.exact else [])

    def _near(self) -> list[PipelineStep]:
        return [*self._once(), MinhashDedupSignature(self._at("near"), self.minhash, WORDS)]

    def _near_find(self) -> list[PipelineStep]:
        return [
            MinhashDedupBuckets(self._at("near"), self._at("near-found"), None, self.minhash, lines_to_buffer=BUFFER)
        ]

    def _near_groups(self) -> list[PipelineStep]:
        return [
            MinhashDedupCluster(self._at("near-found"), self._at("near-groups"), self.minhash, lines_to_buffer=BUFFER)
        ]

    def _left(self, exact: Removed | None = None, near: Removed | None = None) -> list[PipelineStep]:
        steps = self._once(exact)
        return steps + ([MinhashDedupFilter(self._at("near-groups"), near)] if self.pipeline.near.bands else [])

    def _tokenizer(self) -> list[PipelineStep]:
        return [TrainTokenizer(self.folder / TOKENIZER, self.encoder, self._left(), self.pipeline.tasks)]

    def _tokens(self) -> list[PipelineStep]:
        left = self._left(self._removed("exact duplicates"), self._removed("near duplicates"))
        least, removed = self.pipeline.tokens.least, self._removed("tokens")
        shards = self.work / "shards"
        return [*left, WriteShard(self.folder, shards, self.encoder, self.load_tokenizer, least, removed)]

    def _corpus(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Describes all shards as one corpus, and writes the report. Raises UserError if nothing is left."""
        described = [documents.read(file, documents.Object) for file in sorted((self.work / "shards").glob("*.json"))]
        shards = [one["shard"] for one in described if one["shard"]["documents"]]
        read = [documents.read(file, documents.Object) for file in sorted((self.work / "read").glob("*.json"))]
        rules = ["read", *(rule.exclusion_writer.rule for rule in self.rules)]
        rules += ["exact duplicates", "near duplicates", "tokens"]
        removed = {rule: report.total(self.work / "removed", rule, self.pipeline.samples) for rule in rules}
        left = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens")}
        summary = {
            "read": {key: sum(part[key] for part in read) for key in ("documents", "bytes")},
            "removed": {rule: reasons for rule, reasons in removed.items() if reasons},
            "left": {**left, "bytes": sum(one["bytes"] for one in described)},
        }
        write_json(self.folder / "report.json", summary)
        write_file(self.folder / "report.md", report.markdown(summary).encode())
        if not shards:
            raise UserError(f"no document is left: {self.folder / 'report.md'} says which rules have removed them")
        tokenizer = self.load_tokenizer()
        description = {
            "format_version": FORMAT_VERSION,
            **summary["left"],
            "vocab_size": tokenizer.size,
            "tokenizer": tokenizer.hash,
            "xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps([shard["xxh3_128"] for shard in shards]).encode()),
            "shards": shards,
            "request": self.request,
        }
        write_json(self.folder / DESCRIPTION, description)
