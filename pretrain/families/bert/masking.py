"""BERT's masked language model (Devlin et al., 2019, section 3.1), by whole words."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.draws import below, keyed, uniform
from pretrain.errors import UserError


@dataclass(frozen=True)
class Masking:
    """``rate`` of the tokens are predicted; of these, ``mask`` are replaced by [MASK] and ``random`` by a random
    piece."""

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"the masking rate is {self.rate}: it must be above 0 and at most 1")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise UserError(f"{self.mask} masked and {self.random} random are no parts of a whole")


PAPER = Masking()


def choose(
    text: NDArray[np.bool_], word_starts: NDArray[np.bool_], key: NDArray[np.uint64], rate: float
) -> NDArray[np.bool_]:
    """Which tokens are predicted: bool [n, length].

    ``text`` are the tokens that may be (no specials), ``word_starts`` the first of each word, ``key`` [n] the samples'.
    A row's words are taken in random order while they fit into ``rate`` of its tokens; the one that crosses this
    quota is taken with the probability that makes the expected number of tokens the quota itself.
    """
    rows, length = text.shape
    place = np.arange(length)
    word = np.cumsum(word_starts, axis=1, dtype=np.int64)
    # All tokens of a word get the word's draw, so that sorting keeps them together. What is no text comes last.
    draw = np.where(text, uniform(key[:, None], "word", word), 2.0)
    order = np.argsort(draw, axis=1, kind="stable")
    draw = np.take_along_axis(draw, order, axis=1)
    first = np.ones((rows, length + 1), dtype=np.bool_)
    first[:, 1:-1] = draw[:, 1:] != draw[:, :-1]
    start = np.maximum.accumulate(np.where(first[:, :-1], place, 0), axis=1)
    stop = np.minimum.accumulate(np.where(first[:, 1:], place + 1, length)[:, ::-1], axis=1)[:, ::-1]
    quota = rate * text.sum(axis=1, keepdims=True)
    taken = uniform(key, "crossing")[:, None] * (stop - start) < quota - start
    chosen = np.empty_like(text)
    np.put_along_axis(chosen, order, taken & (draw < 2.0), axis=1)
    return chosen


def corrupt(
    tokens: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    key: NDArray[np.uint64],
    masking: Masking,
    mask: int,
    replaceable: tuple[int, int],
) -> NDArray[np.int64]:
    """The tokens as the model sees them: of the chosen ones, each [MASK] (id ``mask``), itself, or an id in
    ``replaceable``.
    """
    row, column = np.nonzero(chosen)
    place = keyed(key[row], column)
    kind = uniform(place, "kind")
    first, stop = replaceable
    random = first + below(stop - first, uniform(place, "piece"))
    seen = tokens.copy()
    seen[row, column] = np.where(
        kind < masking.mask, mask, np.where(kind < masking.mask + masking.random, random, tokens[row, column])
    )
    return seen
