"""The text that a family's stage is trained and measured on, as samples for its engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import Stage, Train
from pretrain.data import documents
from pretrain.data.corpus.corpus import AnyCorpus, Corpus, Split
from pretrain.data.corpus.counts import training_tokens
from pretrain.data.packing import PACKINGS, Packed
from pretrain.data.samples import Samples, causal
from pretrain.data.stream.lanes import LaneStream
from pretrain.data.stream.mixed_lanes import MixedLanes
from pretrain.data.stream.packed import PackedBatch, PackedStream, read_documents
from pretrain.data.stream.stream import Batch, Position, Stream
from pretrain.data.stream.validation import probe, validation_set
from pretrain.data.stream.windows import Rows
from pretrain.errors import UserError
from pretrain.families.common.tokenizers import SENTENCE_PIECE, Kind, Tokenizer

BYTES_PER_TOKEN = 4  # of text in English, about
MEASURED = 1 << 21  # tokens of text whose packing is measured


class Wanted(NamedTuple):
    """The next n samples, a data-parallel rank's part of them; progress is the share of the stage that is done."""

    n: int
    progress: float
    rank: int
    ranks: int

    @staticmethod
    def at(train: Train, done: int, *, rank: int, ranks: int) -> Wanted:
        """The global batch of a stage (its budget in tokens) after so many tokens of it."""
        return Wanted(train.batch_at(done), done / train.tokens, rank, ranks)

    @property
    def rows(self) -> slice:
        """The rank's own of the n samples."""
        share = self.n // self.ranks
        return slice(self.rank * share, (self.rank + 1) * share)


@dataclass(frozen=True)
class Taken:
    """One data-parallel rank's samples of a global batch, and the bytes of text that all of its labels stand for.

    bytes is None where a loss says nothing about bits per byte: a masked language model sees both sides of a word.
    seen: how many tokens the document of a token has in its sample, in the mean over the tokens of the global batch,
    where documents are kept apart; with a memory, those of the sample and of that, which is taken to have as large a
    part of the document; else None. labels: how many labels of the global batch count; None: all. shares: of each of
    several corpora, by name, its share of the stage's samples up to these.
    """

    samples: Samples
    bytes: int | None
    seen: float | None = None
    labels: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """Validation samples, padded to whole micro-batches on every rank with some that do not count; bytes: see Taken.

    source: of several corpora, the name of the one that they are of; share: its part of what the stage is trained on.
    """

    samples: Samples
    bytes: int | None
    source: str = ""
    share: float = 1.0


class HasCursor(Protocol):
    """Training text that is read."""

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next sample comes from, for JSON."""


class Feed(ABC):
    """A stage's corpus and where it is read. Raises UserError for a corpus of another kind and a vocabulary that
    cannot be cut.

    A batch may be made ahead, in a thread; its place is reached when it is taken.
    """

    tokenizers: ClassVar[Kind]
    corpus_type: ClassVar[type[AnyCorpus[Any]]]
    counts_bytes: ClassVar[bool]
    """Whether its losses say something about bits per byte of the text: see Taken."""
    causal: ClassVar[bool]
    """Whether its samples are running text, whose documents may be kept apart."""
    _text: HasCursor
    _cursor: dict[str, Any]
    _thread: ThreadPoolExecutor | None = None
    _ahead: tuple[Wanted, Future[tuple[Taken, dict[str, Any]]]] | None = None

    def __init__(self, stage: Stage, corpus: AnyCorpus[Any]) -> None:
        corpus.tokenizer.legal(stage.model.vocab)
        self.check(stage)
        self.stage, self.corpus = stage, corpus
        self.tokenizer: Tokenizer = corpus.tokenizer

    @classmethod
    def check(cls, stage: Stage) -> None:
        """Raises UserError for keys that its samples cannot follow."""
        for key, usual in (("reset_attention", False), ("packing", "concatenate")):
            if not cls.causal and (value := getattr(stage.data, key)) != usual:
                raise UserError(
                    f"data.{key}: {value}, but samples of {stage.model.family} are pairs of segments, and no running "
                    "text; leave it out"
                )
        if not cls.causal and stage.model.span.max:
            raise UserError(
                f"model.span: a {stage.model.family} looks both ways, and spans reach back alone; leave it out"
            )
        if not cls.causal and stage.log.samples.prompt:
            raise UserError(f"log.samples.prompt: a {stage.model.family} fills gaps and writes no text; leave it out")

    @classmethod
    def open(cls, stage: Stage) -> Self:
        """The text of a stage, at no place yet: see `seek`."""
        return cls(stage, cls.corpus_type.open(stage.data.corpus))

    @staticmethod
    def objective(data: Mapping[str, Any]) -> str:
        """What is predicted, beyond the next token, under a configuration's `data`: losses compare only where it is
        the same."""
        return ""

    @property
    def source(self) -> str:
        """What the text is, in words."""
        return str(self.corpus.path)

    @abstractmethod
    def _opened(self, cursor: Mapping[str, Any] | None) -> HasCursor:
        """The training text from a cursor on; None: from the beginning."""

    @abstractmethod
    def _take(self, n: int, rows: Rows, progress: float) -> Taken:
        """The next n samples of the text, of which only `rows` are made; progress: see Wanted."""

    def seek(self, cursor: Mapping[str, Any] | None) -> None:
        """Go on at a parent's or an earlier run's cursor; None: at the beginning. What was made ahead is dropped."""
        if self._ahead:
            self._ahead[1].exception()  # until then it reads the text
            self._ahead = None
        self._text = self._opened(cursor)
        self._cursor = self._text.cursor

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the sample comes from that is taken next."""
        return self._cursor

    def past(self, cursor: Mapping[str, Any], length: int) -> list[Tensor]:
        """Of each lane at a cursor, whatever this is at, the tokens before its next input: at most so many, of its
        document alone."""
        text = self._opened(cursor)
        assert isinstance(text, LaneStream | MixedLanes)
        return [torch.from_numpy(tokens).long() for tokens in text.past(length)]

    def take(self, n: int, progress: float, rank: int, ranks: int) -> Taken:
        """The next samples: see Wanted."""
        wanted = Wanted(n, progress, rank, ranks)
        if self._ahead and self._ahead[0] != wanted:
            self.seek(self._cursor)
        ahead, self._ahead = self._ahead, None
        taken, self._cursor = ahead[1].result() if ahead else self._made(wanted)
        return taken

    def make_ahead(self, wanted: Wanted) -> None:
        """Begin to make what the next `take` will be asked for, in memory from which a device copies by itself.

        Until that `take`, or a `seek`, once.
        """
        cuda = torch.cuda.is_available()
        if self._thread is None:
            # A new thread is on the first device, and would pin memory for that one.
            place = (torch.cuda.set_device, (torch.cuda.current_device(),)) if cuda else (None, ())
            self._thread = ThreadPoolExecutor(1, "batches", *place)
        self._ahead = wanted, self._thread.submit(self._made, wanted, pinned=cuda)

    def _made(self, wanted: Wanted, pinned: bool = False) -> tuple[Taken, dict[str, Any]]:
        """The next samples, and the cursor behind them."""
        taken = self._take(wanted.n, wanted.rows, wanted.progress)
        if pinned:
            taken = replace(taken, samples={name: rows.pin_memory() for name, rows in taken.samples.items()})
        return taken, self._text.cursor

    @abstractmethod
    def held_out(self, unit: int) -> HeldOut:
        """The validation samples, about train.eval_bytes of text, padded to a multiple of `unit`."""

    def measured(self, unit: int) -> tuple[HeldOut, ...]:
        """The same, apart for each of several corpora."""
        return (self.held_out(unit),)

    @abstractmethod
    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        """n samples of held-out text without padding, in the first `vocab` pieces, for a growth certificate."""

    @abstractmethod
    def batch(self, n: int) -> Samples:
        """n samples of held-out text as training has them, in the stage's segmentation."""

    def packings(self) -> dict[str, Packed]:
        """What becomes of the stage's first documents by each way to pack them; nothing without running text."""
        return {}

    def training_tokens(self) -> int:
        """Tokens of all training documents, once, in the stage's segmentation."""
        stage = self.stage
        return training_tokens(self.corpus, stage.model.vocab, stage.data.validation_fraction, stage.seed)


class CausalFeed(Feed):
    """Text whose every token is a label."""

    tokenizers = SENTENCE_PIECE
    corpus_type = Corpus
    counts_bytes = True
    causal = True
    corpus: Corpus

    _text: Stream | PackedStream | LaneStream

    def _opened(self, cursor: Mapping[str, Any] | None) -> Stream | PackedStream | LaneStream:
        data = self.stage.data
        how: dict[str, Any] = {
            "vocab": self.stage.model.vocab,
            "seq_len": self.stage.train.seq_len,
            "seed": self.stage.seed,
            "validation": data.validation_fraction,
            "cursor": dict(cursor) if cursor else None,
        }
        if self.stage.train.memory:
            return LaneStream(self.corpus, **how)
        return (PackedStream if data.packing == "best_fit" else Stream)(self.corpus, **how, window=data.window)

    @property
    def ahead(self) -> int:
        """How many tokens behind an input its label is."""
        return 1

    def _take(self, n: int, rows: Rows, progress: float) -> Taken:
        return self.taken(self._text.take(n), rows)

    def taken(self, batch: Batch | PackedBatch, rows: Rows) -> Taken:
        """What a step takes of a global batch, with the samples of `rows` alone."""
        samples, labels = self._samples(batch)
        own = {name: values[rows] for name, values in samples.items()}
        return Taken(own, int(batch.bytes.sum()), self._seen(samples), labels)

    def _seen(self, samples: Samples) -> float | None:
        train, seen = self.stage.train, documents.seen(samples)
        if not train.memory:
            return seen
        seen = float(train.seq_len) if seen is None else seen
        return seen + train.memory * seen / train.seq_len

    def _samples(self, batch: Batch | PackedBatch) -> tuple[Samples, int | None]:
        """The samples of a batch, and how many of their labels count; None: all."""
        if isinstance(batch, Batch):
            return self._in_lanes(self._apart(causal(torch.from_numpy(batch.tokens), self.ahead))), None
        arrays = {"inputs": batch.inputs, "labels": batch.labels, "mask": batch.mask.astype(np.float32)}
        samples: Samples = {name: torch.from_numpy(rows) for name, rows in arrays.items()}
        if self.stage.data.reset_attention:
            samples = documents.beginning(samples, torch.from_numpy(batch.begins))
        return samples, int(batch.mask.sum())

    def held_out(self, unit: int) -> HeldOut:
        t = self.stage.train
        text = validation_set(
            self.corpus,
            vocab=self.stage.model.vocab,
            seq_len=t.seq_len,
            seed=self.stage.seed,
            validation=self.stage.data.validation_fraction,
            limit_bytes=t.eval_bytes,
            ahead=self.ahead,
        )
        samples = causal(torch.from_numpy(text.tokens), self.ahead, torch.from_numpy(text.mask).float())
        return HeldOut(padded(self._in_lanes(self._apart(samples)), unit), text.bytes)

    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        seed, validation = self.stage.seed, self.stage.data.validation_fraction
        tokens = probe(self.corpus, n, vocab=vocab, seq_len=seq_len, seed=seed, validation=validation, ahead=self.ahead)
        return self._apart(causal(torch.from_numpy(tokens), self.ahead))

    def batch(self, n: int) -> Samples:
        return self.probe(n, self.stage.model.vocab, self.stage.train.seq_len)

    def packings(self) -> dict[str, Packed]:
        train, data, seed = self.stage.train, self.stage.data, self.stage.seed
        split = Split(self.corpus.tokens.documents, data.validation_fraction, seed)
        most = min(data.window * train.seq_len, max(MEASURED, train.seq_len))
        sizes = read_documents(self.corpus, split, self.stage.model.vocab, Position(), most).inputs
        return {way: measure(sizes, train.seq_len) for way, measure in PACKINGS.items()}

    def _apart(self, samples: Samples) -> Samples:
        """The samples as the stage's model reads them: documents in each other's sight, or apart."""
        return documents.apart(samples, self.corpus.tokenizer.eos) if self.stage.data.reset_attention else samples

    def _in_lanes(self, samples: Samples) -> Samples:
        """The same, where they go on behind each other, or not."""
        together = not (self.stage.train.memory and self.stage.data.reset_attention)
        return samples if together else documents.in_lanes(samples, self.corpus.tokenizer.eos)


def padded(samples: Samples, unit: int) -> Samples:
    """With rows of zeros up to a multiple of `unit`; their masks are zero too."""
    missing = -len(samples["inputs"]) % unit
    return {name: F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)) for name, rows in samples.items()}


TEXT = CausalFeed
