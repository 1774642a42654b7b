"""What each corpus of a mixture has given to each stage, and how well the stage's model knows it."""

from collections.abc import Sequence
from typing import Any

from pretrain.families.common.mixture import names
from pretrain.report.history import StageHistory
from pretrain.report.markdown import table

NOTES = """*wanted*: as the stage asks for it. *share*, *tokens*: what it has had by the stage's last record; *in all*:
over all stages since it was one of several. *bits per byte*: of its own held-out text, at the end of the stage."""
AMOUNTS = {"weight": "weight {:g}", "tokens": "{:,} tokens", "epochs": "{:g} epochs"}


def rows(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """The figures of each source in each stage that has several."""
    found: list[dict[str, Any]] = []
    total: dict[str, int] = {}
    for stage in stages:
        corpora = stage.config["data"]["corpora"]
        for source, name in zip(corpora, names([source["corpus"] for source in corpora]), strict=True):
            given, measured = (stage.series(f"{key}_{name}") for key in ("share", "validation_bits_per_byte"))
            last: dict[str, Any] = given[-1] if given else {**stage.start, f"share_{name}": 0.0}
            tokens = round(last[f"share_{name}"] * (last["tokens"] - stage.start["tokens"]))
            total[source["corpus"]] = total.get(source["corpus"], 0) + tokens
            found.append(
                {
                    "stage": stage.name,
                    "source": name,
                    "wanted": next(text.format(n) for key, text in AMOUNTS.items() if (n := source[key]) is not None),
                    "share": last[f"share_{name}"],
                    "tokens": tokens,
                    "tokens_in_all": total[source["corpus"]],
                    "bits_per_byte": measured[-1][f"validation_bits_per_byte_{name}"] if measured else None,
                }
            )
    return found


def markdown(stages: Sequence[StageHistory]) -> list[str]:
    """Their table; empty where no stage has several corpora."""
    cells = []
    for row in rows(stages):
        bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        figures = [f"{row['share']:.4f}", f"{row['tokens']:,}", f"{row['tokens_in_all']:,}", bits]
        cells.append([row["stage"], row["source"], row["wanted"], *figures])
    header = ["stage", "source", "wanted", "share", "tokens", "in all", "bits per byte"]
    return ["## Corpora", table(header, cells), NOTES] if cells else []
