"""Which text a stage was measured on, as its folder says, so that only losses of the same text are compared."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.errors import UserError
from pretrain.report.history import StageHistory
from pretrain.runtime import documents

CONTENT = ("xxh3_128", "tokenizer", "documents", "tokens")
"""The keys of a corpus's description that tell its text from another's, wherever the corpus lies."""


def held_out(stage: StageHistory) -> dict[str, Any]:
    """All that decides which text validation uses; see pretrain.data.corpus.corpus.Split."""
    data, train = stage.config["data"], stage.config["train"]
    return {
        **_corpora(data),
        "seed": stage.config.get("seed", 0),
        "data.validation_fraction": data.get("validation_fraction"),
        "train.eval_bytes": train.get("eval_bytes"),
    }


def trained(stage: StageHistory) -> dict[str, Any]:
    """All that decides which text is trained on, except for its order."""
    return _corpora(stage.config["data"])


def _corpora(data: Mapping[str, Any]) -> dict[str, Any]:
    """The text of a stage: its corpus, or all of them with what it has of each."""
    if not (sources := data.get("corpora")):
        return {"data.corpus": _corpus(str(data["corpus"]))}
    amounts = [
        f"{_words(_corpus(str(source['corpus'])))} x {[source.get(key) for key in ('weight', 'tokens', 'epochs')]}"
        for source in sources
    ]
    return {"data.corpus": ", ".join(amounts)}


def difference(texts: Iterable[Mapping[str, Any]]) -> str:
    """The first key in which the texts differ, and two of its values, in words; empty if they are all the same."""
    first, *remaining = texts
    for other in remaining:
        for key, value in first.items():
            if other[key] != value:
                return f"{key} {_words(value)} and {_words(other[key])}"
    return ""


@lru_cache(maxsize=64)
def _corpus(folder: str) -> tuple[str, tuple[Any, ...]]:
    """What identifies a corpus: its content, so equal for copies of it; its folder if it cannot be read any more."""
    try:
        description = documents.read(Path(folder) / DESCRIPTION, documents.Object)
    except UserError:  # the corpus is gone: its name must do
        return folder, ()
    return "", tuple(documents.show(description.get(key)) for key in CONTENT)


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        folder, content = value
        return folder or f"of {content[2]} documents ({content[0]})"
    return str(value)
