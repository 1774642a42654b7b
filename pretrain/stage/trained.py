"""What a stage trains and what it leaves as it was, by name and number; and at its end, how far each of it has moved.

It is kept as trained.json in the stage's folder, and said at both ends of the stage. pretrain/stage/moved.py works it
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from growth.describe import table
from pretrain.runtime import documents
from pretrain.runtime.documents import Count, Number, Text
from pretrain.runtime.files import write_json

FILE = "trained.json"


@dataclass(frozen=True)
class Group:
    """Parameters that a stage treats alike.

    where: the name of a tensor, or layers by their numbers. tensors: the rows of the family's table that they are of.
    rate: what the stage's learning rate is multiplied by; 0: they are frozen. moved: ||end - start|| / ||start|| over
    the stage; None before its end, where it is not known, or where all were zero.
    """

    where: str
    tensors: tuple[str, ...]
    generation: int
    born: str
    rate: float
    parameters: int
    moved: float | None = None


class _Group(TypedDict):
    __pydantic_config__ = documents.CLOSED  # type: ignore[misc]
    where: Text
    tensors: list[Text]
    generation: Count
    born: Text
    rate: Number
    parameters: Count
    moved: Number | None


def keep(folder: Path, known: Iterable[Group]) -> None:
    """Keeps the groups in a stage's folder."""
    write_json(folder / FILE, [asdict(group) for group in known])


def read(folder: Path) -> list[Group]:
    """The groups of a stage, by its folder; none where it kept none. Raises UserError for a file that is damaged."""
    if not (folder / FILE).is_file():
        return []
    kept: list[Any] = documents.read(folder / FILE, list[_Group])
    return [Group(**{**group, "tensors": tuple(group["tensors"])}) for group in kept]


def rows(known: Sequence[Group]) -> Iterator[list[str]]:
    """A row of a table for each group, below a header."""
    total = sum(group.parameters for group in known)
    yield ["", "generation", "parameters", "share", "rate", "moved by"]
    for group in known:
        rate = f"x {group.rate:g}" if group.rate else "frozen"
        change = "" if group.moved is None else f"{group.moved:.2%}" if group.moved else "nothing"
        share = f"{group.parameters / total:.1%}"
        yield [group.where, f"{group.generation} ({group.born})", f"{group.parameters:,}", share, rate, change]


def describe(known: Sequence[Group]) -> str:
    """The table, and the number of all that is trained."""
    total, trained = (sum(g.parameters for g in known if g.rate or not only) for only in (False, True))
    return f"{trained:,} of {total:,} parameters are trained\n{table(list(rows(known)))}"
