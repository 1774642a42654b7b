"""What training streams share: samples drawn window by window from a cursor.

A stream reads its corpus in *windows*, each a function of the place where it starts, and draws a window's samples in an
order that is a function of that place too. So the whole state is the place and how many samples were drawn from there.
The cursor says so as a dict for JSON:

    (the fields of the place)      where the window starts
    drawn                          samples drawn from the window
    next                           where the following window starts; null while nothing of this one is drawn
    (the fields of the cut)        what the window was made with: vocabulary, sequence length, ...
    corpus                         hash of the corpus and of the split into training and validation
    tokenizer                      hash of the corpus's tokenizer, for an export that does not have the corpus

A stage that makes its windows otherwise goes on where its parent's window ends; what was not drawn of it is lost.

A window that is begun ends where it was to end when it was begun. Any other is cut short at the end of the last epoch
that is wanted (``epochs``), behind the first sample that reaches it, so that nothing is left out.
"""

import logging
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import AnyCorpus, Split
from pretrain.data.permute import permuted
from pretrain.errors import UserError

log = logging.getLogger(__name__)


class AnyPlace(Protocol):
    """A frozen dataclass of integers that can be made without arguments."""

    @property
    def epoch(self) -> int:
        """How often all documents were read before."""


C = TypeVar("C", covariant=True)
P = TypeVar("P", bound=AnyPlace)
Rows = slice | NDArray[np.bool_]
"""Some of a number of samples: a slice of them, or for each whether it is one."""
B = TypeVar("B")  # a batch: a dataclass of arrays whose first axis is the sample


class AnyWindow(Protocol[C]):
    """What a stream needs to know of a window."""

    @property
    def end(self) -> C:
        """Where the next window starts."""

    def __len__(self) -> int:
        """How many samples it has."""


W = TypeVar("W", bound=AnyWindow[Any])


class WindowedStream(ABC, Generic[P, W, B]):
    """A stream of samples: ``take`` gives the next ones, ``cursor`` says where it is."""

    epochs: int | None = None  # after which its text is over; None: it begins its next epoch
    held_out = False  # whether its text is read over and over by design, so that no warning says so
    _tiny = False  # whether the user was warned that one window exhausts the corpus

    def __init__(
        self,
        corpus: AnyCorpus,
        place: type[P],
        cut: dict[str, Any],
        *,
        seed: int,
        validation: float,
        cursor: dict[str, Any] | None,
    ) -> None:
        self.split = Split(corpus.tokens.documents, validation, seed)
        self._path, self._place, self._cut, self._seed = corpus.path, place, cut, seed
        self._tokenizer = corpus.tokenizer.hash
        self._identity = identity(corpus, seed, validation)
        self._go(place())
        if cursor is not None:
            self._seek(cursor)

    @abstractmethod
    def read(self, start: P, size: int) -> W:
        """Reads the window that starts at a place, of about so many samples at most."""

    @abstractmethod
    def samples(self, window: W, which: NDArray[np.int64]) -> B:
        """Makes the samples of a window that have these numbers in it."""

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next sample comes from, for JSON: a stream made with it gives the same samples."""
        return {
            **asdict(self._start),  # type: ignore[call-overload]
            "drawn": self._drawn,
            "next": asdict(self._next) if self._next else None,
            **self._cut,
            "corpus": self._identity,
            "tokenizer": self._tokenizer,
        }

    def take(self, n: int, rows: Rows = slice(None)) -> B:
        """The next n samples, of which only ``rows`` of range(n) are made: a data-parallel rank's own.

        The cursor moves by n whatever the rows, and the samples do not depend on how calls split them.
        """
        is_made = np.zeros(n, dtype=np.bool_)
        is_made[rows] = True
        batches: list[B] = []
        done = 0
        while not batches or done < n:
            window, order = self._current()
            count = min(n - done, len(window) - self._drawn)
            batches.append(self.samples(window, order[self._drawn : self._drawn + count][is_made[done : done + count]]))
            done += count
            self._drawn += count
            if count:
                self._next = window.end
            if self._drawn == len(window):
                self._go(window.end)
        return _joined(batches)

    @property
    def over(self) -> bool:
        """Whether all the epochs that are wanted were read."""
        return self.epochs is not None and self._start.epoch >= self.epochs

    def ready(self) -> int:
        """How many samples can be taken before the text may be over; 0 where it is."""
        while not self.over:
            window, _ = self._current()
            if len(window):
                return len(window) - self._drawn
            self._go(window.end)
        return 0

    def _go(self, start: P, drawn: int = 0, following: P | None = None) -> None:
        self._start, self._drawn, self._next = start, drawn, following
        self._window: tuple[W, NDArray[np.int64]] | None = None

    def _current(self) -> tuple[W, NDArray[np.int64]]:
        if self._window is None:
            window = self._read(self._start)
            if self._next not in (None, window.end):
                raise UserError(
                    f"{self._path} is not what it was when the checkpoint was written: its text ends elsewhere"
                )
            self._say(window.end.epoch)
            key = asdict(self._start).values()  # type: ignore[call-overload]
            self._window = window, permuted(np.arange(len(window)), len(window), self._seed, *key)
        return self._window

    def _read(self, start: P) -> W:
        """The window that starts at a place: the largest, or the smallest that reaches where it is to end."""
        size: int = self._cut["window"]
        window = self.read(start, size)
        limit = self._next or (None if self.epochs is None else self._place(epoch=self.epochs))  # type: ignore[call-arg]
        if limit is None or _tuple(window.end) <= _tuple(limit):
            return window
        sizes = range(1, size)
        least = bisect_left(sizes, True, key=lambda n: _tuple(self.read(start, n).end) >= _tuple(limit))
        return self.read(start, sizes[least]) if least < len(sizes) else window

    def _say(self, epoch: int) -> None:
        """Warns that text comes again in a window that ends in this epoch: see `say_epoch`; once only if one window
        exhausts the corpus."""
        passes, documents = epoch - self._start.epoch, self.split.training
        if self.held_out or self._tiny or not passes or epoch == self.epochs:
            return
        if passes == 1:
            say_epoch(epoch, documents, self._path)
            return
        self._tiny = True
        log.warning(
            "%s is tiny: a window of %d samples (data.window) has its %d training documents %d times",
            self._path,
            self._cut["window"],
            documents,
            passes,
        )

    def _seek(self, cursor: dict[str, Any]) -> None:
        if "sources" in cursor:
            raise UserError(
                f"data.corpus: the stage before had several corpora; give data.corpora here too, with {self._path} "
                "alone if that is meant, so that it stays known where each of them goes on"
            )
        if cursor["corpus"] != self._identity:
            raise UserError(
                f"the data cursor is not of {self._path}: that corpus, the seed or the validation fraction"
                " has changed since the checkpoint was written; put them back, or start the stage without a parent"
            )
        start = self._place(**{field.name: cursor[field.name] for field in fields(self._place)})  # type: ignore[arg-type]
        following = self._place(**cursor["next"]) if cursor["next"] else None
        if all(cursor.get(key) == self._cut.get(key) for key in {*self._cut, "packing"}):
            self._go(start, cursor["drawn"], following)
        else:
            self._go(following or start)


def identity(corpus: AnyCorpus[Any], seed: int, validation: float) -> str:
    """A hash of a corpus and its split into training and validation, as cursors have it."""
    return xxhash.xxh3_64_hexdigest(f"{corpus.hash} {seed} {validation}".encode())


def check_cursor(cursor: Mapping[str, Any], identity: str, path: Path) -> None:
    """Raises UserError unless the cursor is of one corpus, and that of this identity."""
    if "sources" in cursor:
        raise UserError(
            f"data.corpora: the stage before had several corpora; give data.corpora here too, with {path} "
            "alone if that is meant, so that it stays known where each of them goes on"
        )
    if cursor["corpus"] != identity:
        raise UserError(
            f"the data cursor is not of {path}: that corpus, the seed or the validation fraction"
            " has changed since the checkpoint was written; put them back, or start the stage without a parent"
        )


def say_epoch(epoch: int, documents: int, path: Path) -> None:
    """Warns that this epoch begins: each up to the tenth, then the 20th, 30th and so on, the 200th and so on."""
    number = epoch + 1
    if number % 10 ** (len(str(number)) - 1) == 0:
        log.warning("all %d training documents of %s were read: epoch %d begins", documents, path, number)


def _tuple(place: Any) -> tuple[int, ...]:
    """A place, to be compared: what comes later in the text is more."""
    return astuple(place)


def _joined(batches: list[B]) -> B:
    if len(batches) == 1:
        return batches[0]
    names = [field.name for field in fields(batches[0])]  # type: ignore[arg-type]
    return type(batches[0])(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in names})
