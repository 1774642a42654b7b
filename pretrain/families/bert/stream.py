"""BERT's samples: two segments, masked words, and whether the second segment follows the first (Devlin et al., 2019).

A sample starts at a sentence and takes sentences of its document until they fill it (a tenth of the samples have a
shorter target). They are split between two sentences into A and B. With ``nsp``, half of the samples get a B of the
same length from a random place in *another document*, and what B would have been starts the next sample, so no text is
left out. With ``sop`` (ALBERT: Lan et al., 2020) half of the samples have A and B swapped. A segment that is too long
is cut at either end.

All draws are keyed by (seed, epoch, first sentence), so a sample does not depend on which others are made. A window's
place is

    epoch, document   the position of the document in the epoch's permutation
    sentence          the sentence in the document
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import AnyCorpus
from pretrain.data.draws import below, keyed, uniform
from pretrain.data.permute import permuted
from pretrain.data.ragged import ragged
from pretrain.data.stream.windows import WindowedStream
from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.errors import UserError
from pretrain.families.bert.masking import PAPER, Masking, choose, corrupt

Pairs = Literal["nsp", "sop"]
WINDOW = 1024  # samples, about
SHORT = 0.1  # of the samples have a shorter target


class BertCorpus(AnyCorpus[WordPiece]):
    """Documents of sentences of WordPiece, without special tokens."""

    @classmethod
    def load_tokenizer(cls, folder: Path) -> WordPiece:
        """Raises UserError if the corpus is not one of WordPiece."""
        if not (folder / "vocab.txt").exists():
            raise UserError(
                f"{folder.parent} is no corpus of sentences: make one with tools/prepare_data.py --wordpiece"
            )
        return WordPiece.load(folder)


@dataclass(frozen=True)
class Place:
    """Where a window starts; see above."""

    epoch: int = 0
    document: int = 0
    sentence: int = 0


@dataclass(frozen=True)
class BertBatch:
    """n samples of ``seq_len`` tokens: [CLS] A [SEP] B [SEP] [PAD] ..."""

    tokens: NDArray[np.int64]  # [n, seq_len], as the model sees them
    labels: NDArray[np.int64]  # [n, seq_len], as they were
    loss_mask: NDArray[np.bool_]  # [n, seq_len], True where the token is to be predicted
    token_types: NDArray[np.int64]  # [n, seq_len], 1 for B and its [SEP]
    attention_mask: NDArray[np.bool_]  # [n, seq_len], False on [PAD]
    next_sentence: NDArray[np.int64]  # [n], 0 where B follows A, else 1, as in transformers


@dataclass(frozen=True)
class Window:
    """Samples as ranges of ``tokens`` (int32, of the stage): A is a to b, B is b to end, unless it is another
    document's."""

    end: Place
    epoch: int
    tokens: NDArray[np.int32]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    stop: NDArray[np.int64]
    document: NDArray[np.int64]  # position in the epoch's permutation
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.a)


class BertStream(WindowedStream[Place, Window, BertBatch]):
    """``BertStream(corpus, vocab=8000, seq_len=128, seed=0, validation=0.05)``; see ``WindowedStream``.

    ``masking`` may be replaced between calls of ``take``: a schedule is the caller's.
    """

    def __init__(
        self,
        corpus: BertCorpus,
        *,
        vocab: int,
        seq_len: int,
        seed: int,
        validation: float,
        cursor: dict[str, Any] | None = None,
        masking: Masking = PAPER,
        pairs: Pairs = "nsp",
        held_out: bool = False,
        window: int = WINDOW,
    ) -> None:
        """``validation`` is the fraction of documents held out; ``held_out`` reads these instead, always in the same
        order. ``cursor`` is a parent's or an earlier run's.

        Raises UserError if the vocabulary cannot be cut there, if there are fewer than two documents to read or none of
        two sentences, or if the cursor is of another corpus, seed or validation fraction.
        """
        corpus.tokenizer.legal(vocab)
        if seq_len < 8:
            raise UserError(f"a sequence length of {seq_len} has no room for two segments: give 8 or more")
        self.corpus, self.seq_len, self.masking, self.pairs = corpus, seq_len, masking, pairs
        self.held_out = held_out
        self._vocab, self._segmentation = vocab, corpus.tokenizer.segmentation(vocab)
        self._text = seq_len - 3
        cut = {"vocab": vocab, "seq_len": seq_len, "window": window, "pairs": pairs}
        super().__init__(corpus, Place, cut, seed=seed, validation=validation, cursor=cursor)
        self._count = self.split.validation if held_out else self.split.training
        if self._count < 2:
            raise UserError(
                f"{corpus.path} has {self._count} document to read here, but a sample needs B of another one"
            )
        two = corpus.tokens.documents_of(2)
        if two <= corpus.tokens.documents - self._count:
            raise UserError(
                f"{corpus.path} has too few documents of two or more sentences ({two}):"
                " prepare whole texts as documents"
            )

    def read(self, start: Place, size: int) -> Window:
        """About ``size`` samples from a place on, at least one unless the epoch or its documents end."""
        budget = size * self.seq_len
        while True:
            window, cut = self._within(start, budget)
            if len(window) or not cut:
                return window
            budget *= 2  # a sentence longer than the window

    def _within(self, start: Place, budget: int) -> tuple[Window, bool]:
        """A window of at most about ``budget`` tokens, and whether its last document was cut."""
        tokens = self.corpus.tokens
        mean = max(1, tokens.tokens // tokens.documents)
        positions = np.arange(start.document, min(self._count, start.document + budget // mean + 2))
        documents = self._documents(start.epoch, positions)
        first, stop = tokens.first_sequences(documents), tokens.first_sequences(documents + 1)
        first[0] += start.sentence
        sizes = tokens.starts(stop) - tokens.starts(first)
        enough = int(np.searchsorted(np.cumsum(sizes), budget)) + 1
        positions, first, stop, sizes = (x[:enough] for x in (positions, first, stop, sizes))
        whole = stop[-1]
        over = int(sizes.sum()) - budget
        if over > 0:  # cut the last document behind the sentence that fills the budget
            ends = tokens.starts(np.arange(first[-1], stop[-1]) + 1)
            stop[-1] = first[-1] + 1 + np.searchsorted(ends, tokens.starts(first[-1:])[0] + sizes[-1] - over)
            sizes[-1] = tokens.starts(stop[-1:])[0] - tokens.starts(first[-1:])[0]
        cut = bool(stop[-1] < whole)

        counts = stop - first
        sentence = ragged(first, counts)
        ids = self.corpus.read(tokens.starts(first), sizes)
        lengths = tokens.sequence_lengths(sentence)
        lengths = np.add.reduceat(self._segmentation.lengths[ids].astype(np.int64), np.cumsum(lengths) - lengths)
        at = np.concatenate([[0], np.cumsum(lengths)])  # of each sentence in the stage's tokens
        ends = np.cumsum(counts)
        key = keyed(self._seed, "sample", start.epoch, sentence)
        split, stop_at, following = self._spans(key, at, np.repeat(ends, counts))

        chosen: list[int] = []
        owner: list[int] = []
        at_end, following_list, stop_list = 0, following.tolist(), stop_at.tolist()
        for nth, (begin, end) in enumerate(zip((ends - counts).tolist(), ends.tolist(), strict=True)):
            # In a document that was cut, only what the part that is missing cannot change.
            last = end - 2 if cut and nth == len(ends) - 1 else end
            at_end = begin
            while end - at_end >= 2 and stop_list[at_end] <= last:
                chosen.append(at_end)
                owner.append(nth)
                at_end = following_list[at_end]
        if cut:
            offset = start.sentence if len(positions) == 1 else 0
            end_place = Place(start.epoch, int(positions[-1]), offset + at_end - int(ends[-1] - counts[-1]))
        else:
            end_place = self._after(start.epoch, int(positions[-1]) + 1)
        s = np.array(chosen, dtype=np.int64)
        window = Window(
            end_place,
            start.epoch,
            self._segmentation.apply(ids),
            a=at[s],
            b=at[split[s]],
            stop=at[stop_at[s]],
            document=positions[np.array(owner, dtype=np.int64)],
            key=key[s],
        )
        return window, cut

    def _spans(
        self, key: NDArray[np.uint64], at: NDArray[np.int64], document_end: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For a sample from each sentence: where B starts, where it ends, and where the next sample starts (in
        sentences).
        """
        sentence = np.arange(len(key))
        short = 2 + below(self._text - 1, uniform(key, "length"))
        target = np.where(uniform(key, "short") < SHORT, short, self._text)
        stop = np.searchsorted(at, at[:-1] + target)
        stop = np.minimum(np.maximum(stop, sentence + 2), document_end)
        stop = np.where(document_end - stop == 1, document_end, stop)  # a sentence alone would make no sample
        split = sentence + 1 + below(np.maximum(stop - sentence - 1, 1), uniform(key, "split"))
        return split, stop, np.where(self._other(key), split, stop)

    def _other(self, key: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which samples have a B of another document."""
        if self.pairs == "sop":
            return np.zeros(len(key), dtype=np.bool_)
        return uniform(key, "pair") < 0.5

    def samples(self, window: Window, which: NDArray[np.int64]) -> BertBatch:
        """Samples of a window, masked."""
        key, a, b, stop = window.key[which], window.a[which], window.b[which], window.stop[which]
        other = self._other(key)
        buffer, lone_b, lone_size = self._other_documents(window, which[other])
        a_size, b_size = b - a, stop - b
        b[other] = lone_b
        b_size[other] = np.minimum(b_size[other], lone_size)
        not_next = other
        if self.pairs == "sop":
            not_next = uniform(key, "pair") < 0.5
            a, b = np.where(not_next, b, a), np.where(not_next, a, b)
            a_size, b_size = np.where(not_next, b_size, a_size), np.where(not_next, a_size, b_size)

        # What is over goes from the longer segment; which part of a segment stays is random.
        a_kept = np.minimum(a_size, np.maximum(self._text - b_size, (self._text + 1) // 2))
        b_kept = np.minimum(b_size, self._text - a_kept)
        a = a + below(a_size - a_kept + 1, uniform(key, "cut A"))
        b = b + below(b_size - b_kept + 1, uniform(key, "cut B"))
        return self._assembled(buffer, key, (a, a_kept), (b, b_kept), not_next)

    def _assembled(
        self,
        buffer: NDArray[np.int32],
        key: NDArray[np.uint64],
        a: tuple[NDArray[np.int64], NDArray[np.int64]],
        b: tuple[NDArray[np.int64], NDArray[np.int64]],
        not_next: NDArray[np.bool_],
    ) -> BertBatch:
        """Samples of the segments (start in the buffer, length)."""
        tokenizer = self.corpus.tokenizer
        column = np.arange(self.seq_len)
        a_start, a_size, b_start, b_size = (x[:, None] for x in (*a, *b))
        last = a_size + b_size + 2
        in_a = (column >= 1) & (column <= a_size)
        in_b = (column >= a_size + 2) & (column < last)
        text = in_a | in_b
        source = np.where(in_a, a_start + column - 1, b_start + column - a_size - 2)
        labels = np.where(text, buffer[np.where(text, source, 0)], tokenizer.pad).astype(np.int64)
        labels[:, 0] = tokenizer.cls
        labels[(column == a_size + 1) | (column == last)] = tokenizer.sep

        starts = (column == 1) | (column == a_size + 2)
        if self.masking.whole_words:
            starts |= ~tokenizer.continues[labels]
        else:
            starts |= text
        chosen = choose(text, starts, key, self.masking.rate)
        return BertBatch(
            tokens=corrupt(labels, chosen, key, self.masking, tokenizer.mask, tokenizer.replaceable(self._vocab)),
            labels=labels,
            loss_mask=chosen,
            token_types=((column >= a_size + 2) & (column <= last)).astype(np.int64),
            attention_mask=column <= last,
            next_sentence=not_next.astype(np.int64),
        )

    def _other_documents(
        self, window: Window, which: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """The window's tokens with text of other documents behind them: starts and lengths of one piece a sample."""
        if not len(which):
            return window.tokens, which, which
        tokens, key = self.corpus.tokens, window.key[which]
        position = below(self._count - 1, uniform(key, "document"))
        position += position >= window.document[which]
        documents = self._documents(window.epoch, position)
        first, stop = tokens.first_sequences(documents), tokens.first_sequences(documents + 1)
        start = tokens.starts(first + below(stop - first, uniform(key, "sentence")))
        counts = np.minimum(tokens.starts(stop) - start, self._text)
        ids = self.corpus.read(start, counts)
        sizes = np.add.reduceat(self._segmentation.lengths[ids].astype(np.int64), np.cumsum(counts) - counts)
        buffer = np.concatenate([window.tokens, self._segmentation.apply(ids)])
        return buffer, len(window.tokens) + np.cumsum(sizes) - sizes, sizes

    def _documents(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.held_out:
            return permuted(positions, self.split.documents, self.split.seed, "split")
        return self.split.training_documents(epoch, positions)

    def _after(self, epoch: int, document: int) -> Place:
        if document < self._count:
            return Place(epoch, document)
        return Place(epoch + 1)
