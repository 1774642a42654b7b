"""The keys of a mixture: the corpora that a stage draws its text from, and how much of it from each.

In a file an entry of `data.corpora` may have `from_stage` too, the name of the first stage that it is for: the stages
before have no such entry. A stage's own `data.corpus` or `data.corpora` replaces both of the file's top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath
from typing import Annotated, Any

from pydantic import Field

from pretrain.config.kinds import Count, Positive
from pretrain.config.reading import did_you_mean
from pretrain.config.section import Section
from pretrain.errors import UserError

AMOUNTS = ("weight", "tokens", "epochs")


@dataclass(frozen=True)
class CorpusShare(Section):
    """One source of a mixture. One of weight, tokens and epochs says how much of a stage's text is of it."""

    corpus: str
    """Folder of a prepared corpus; all of them have one tokenizer."""
    weight: Annotated[float, Field(ge=0)] | None = None
    """Its part of what tokens and epochs of other sources leave of the stage, to the sum of all weights; 0: it is only
    measured on held-out text."""
    tokens: Count | None = None
    """Tokens of it in this stage. Where all sources have tokens or epochs, these are only set in proportion."""
    epochs: Annotated[float, Field(ge=0)] | None = None
    """The same, as a number of passes through its training text."""
    leave_after: Positive | None = None
    """Epochs, in the whole curriculum, after which it gives no more and the others share its part; absent: it begins
    its next epoch."""

    @property
    def amount(self) -> float:
        """The number that is given, of whichever kind."""
        return next((value for key in AMOUNTS if (value := getattr(self, key)) is not None), 0.0)


def expand(merged: Mapping[str, Any], raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A document with the sections at its top merged under its stages, where each has its own of `data.corpus` and
    `data.corpora`, and only the sources that it begins with or after. raw: the document before it was merged.

    Raises UserError for a `from_stage` that names no stage. What is of a wrong type is left for its validation.
    """
    merged = dict(merged)
    stages, written = merged.get("stages"), raw.get("stages")
    if not isinstance(stages, list) or not isinstance(written, list):
        return merged
    names = [stage.get("name") if isinstance(stage, Mapping) else None for stage in stages]
    merged["stages"] = [
        _of_stage(stage, own, names, index, where)
        for index, (stage, own) in enumerate(zip(stages, written, strict=True))
    ]
    return merged


def _of_stage(stage: Any, own: Any, names: Sequence[Any], index: int, where: str) -> Any:
    data = stage.get("data") if isinstance(stage, Mapping) else None
    if not isinstance(data, Mapping):
        return stage
    data, given = dict(data), own.get("data") if isinstance(own.get("data"), Mapping) else {}
    for key, other in (("corpus", "corpora"), ("corpora", "corpus")):
        if key in given and other not in given:
            data.pop(other, None)
    if isinstance(data.get("corpora"), list):
        data["corpora"] = [
            {key: value for key, value in source.items() if key != "from_stage"}
            if isinstance(source, Mapping)
            else source
            for number, source in enumerate(data["corpora"])
            if not isinstance(source, Mapping)
            or _begun(source.get("from_stage"), names, index, f"{where}: stages[{index}].data.corpora[{number}]")
        ]
    return {**stage, "data": data}


def _begun(first: Any, names: Sequence[Any], index: int, where: str) -> bool:
    if first is None:
        return True
    if first not in names:
        known = [name for name in names if isinstance(name, str)]
        hint = did_you_mean(str(first), known)
        raise UserError(f"{where}.from_stage: {first!r} is no stage{hint}; name one of {', '.join(known)}")
    return names.index(first) <= index


def problems(corpus: str, sources: Sequence[CorpusShare], budget: int) -> Iterator[str]:
    """Yields what is wrong with the text of a stage. budget: its tokens, or 0 where it is in epochs."""
    if bool(corpus) == bool(sources):
        yield (
            f"data.corpora: given beside data.corpus {corpus!r}; give one of them"
            if corpus
            else "data.corpus: missing; give it, or data.corpora with at least one source that this stage has"
        )
        return
    seen: dict[str, int] = {}
    for number, source in enumerate(sources):
        where = f"data.corpora[{number}]"
        if (first := seen.setdefault(normpath(source.corpus), number)) != number:
            yield f"{where}.corpus: {source.corpus!r} is data.corpora[{first}] too; name it once, with the sum of both"
        given = [key for key in AMOUNTS if getattr(source, key) is not None]
        if len(given) != 1:
            yield f"{where}: {' and '.join(given) or 'nothing'} given; give one of weight, tokens and epochs"
    if sources and not sum(source.amount for source in sources):
        yield f"data.corpora: all of {', '.join(AMOUNTS)} are 0; give at least one source more"
    fixed = sum(source.tokens or 0 for source in sources)
    if any(source.weight for source in sources) and 0 < budget <= fixed:
        yield (
            f"data.corpora: the tokens of its sources are {fixed} of train.tokens {budget}, which leaves nothing to "
            "share by weight; lower them, or give all sources tokens or epochs"
        )
