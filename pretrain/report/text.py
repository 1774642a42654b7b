"""The text that a stage was measured on, so far as its folder says: whether losses are of one and the same text."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.errors import UserError
from pretrain.report.history import StageHistory
from pretrain.runtime import documents

CONTENT = ("xxh3_128", "tokenizer", "documents", "tokens")
"""Of a corpus's description: what tells its text from another's, wherever the corpus lies."""


def held_out(stage: StageHistory) -> dict[str, Any]:
    """All that decides which text a validation is of: see pretrain.data.corpus.corpus.Split."""
    data, train = stage.config["data"], stage.config["train"]
    return {
        "data.corpus": _corpus(str(data["corpus"])),
        "seed": stage.config.get("seed", 0),
        "data.validation_fraction": data.get("validation_fraction"),
        "train.eval_bytes": train.get("eval_bytes"),
    }


def trained(stage: StageHistory) -> dict[str, Any]:
    """All that decides which text a training loss is of, but for its order."""
    return {"data.corpus": _corpus(str(stage.config["data"]["corpus"]))}


def difference(texts: Iterable[Mapping[str, Any]]) -> str:
    """The first key in which they are not all the same, and its values; empty when they are."""
    first, *others = texts
    for other in others:
        for key, value in first.items():
            if other[key] != value:
                return f"{key} {_words(value)} and {_words(other[key])}"
    return ""


@lru_cache(maxsize=64)
def _corpus(folder: str) -> tuple[str, tuple[Any, ...]]:
    """The folder, and what is in it; the same for two folders that hold the same."""
    try:
        found = documents.read(Path(folder) / DESCRIPTION, documents.Object)
    except UserError:  # not here any more: its name must do
        return folder, ()
    return "", tuple(documents.show(found.get(key)) for key in CONTENT)


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        folder, content = value
        return folder or f"of {content[2]} documents ({content[0]})"
    return str(value)
