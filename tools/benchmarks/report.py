"""What every benchmark gives back: a title, its settings, and rows of figures."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.cli.command import to_json


@dataclasses.dataclass(frozen=True)
class Report:
    """A table. Each row maps column names to figures; `notes` say what the columns mean."""

    title: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self))

    def __str__(self) -> str:
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        cells = [[column.replace("_", " ") for column in columns]]
        cells += [[_cell(row.get(column)) for column in columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        rule = "  ".join("-" * w for w in widths)
        settings = ", ".join(f"{key.replace('_', ' ')} {_cell(value)}" for key, value in self.settings.items())
        return "\n".join([self.title, settings, "", lines[0].rstrip(), rule, *lines[1:], "", *self.notes])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, first quartile, third quartile)."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high
