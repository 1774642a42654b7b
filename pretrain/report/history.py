"""What happened in a run, read from its folder: for plots, reports and status."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from growth import Architecture
from growth.certificate import Certificate
from pretrain import metrics
from pretrain.config import Model
from pretrain.errors import UserError


@dataclass(frozen=True)
class Event:
    """A growth event, as a stage keeps it in its events folder. `seconds`: from its start to its first step.

    Without a certificate it was grown offline and not measured."""

    old: Architecture
    new: Architecture
    certificate: Certificate | None
    seconds: float


@dataclass(frozen=True)
class StageHistory:
    """One stage of a run."""

    name: str
    folder: Path
    config: dict[str, Any]
    """Resolved, as in config.yaml."""
    records: tuple[dict[str, Any], ...]
    """Of metrics.jsonl, in order; see pretrain.metrics."""
    event: Event | None
    """How it grew from its parent; None for a first stage."""
    done: bool

    @property
    def architecture(self) -> Architecture:
        """The shape that it trains."""
        if self.event:
            return self.event.new
        return Model(**self.config["model"]).architecture()

    @property
    def start(self) -> dict[str, Any]:
        """Tokens, FLOPs and seconds of the run before the first step; not exact if that record is lost."""
        return self.records[0]

    @property
    def end(self) -> dict[str, Any]:
        """Tokens, FLOPs and seconds of the run after the last recorded step."""
        return self.records[-1]

    def used(self, key: str) -> float:
        """How much of `tokens`, `flops` or `seconds` this stage used."""
        return self.end[key] - self.start[key]

    def series(self, key: str) -> list[dict[str, Any]]:
        """The records that have `key`."""
        return [record for record in self.records if key in record]


def load(folder: Path) -> list[StageHistory]:
    """The stages of a run that have begun, in order.

    Raises:
        UserError: the folder is not that of a run, or no stage has begun, or a file of it is damaged.
    """
    found = []
    for path in sorted(folder.glob("*/metrics.jsonl")):
        stage = path.parent
        records = tuple(metrics.read(path))
        if not records:
            continue
        try:
            config = yaml.safe_load((stage / "config.yaml").read_text())
            event = _event(stage)
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            raise UserError(f"{stage}: not the folder of a stage, or damaged: {error}") from error
        found.append(StageHistory(stage.name, stage, config, records, event, (stage / "DONE").exists()))
    if not found:
        raise UserError(f"{folder}: no stage of a run has written metrics here; give a run's folder, such as runs/demo")
    return sorted(found, key=lambda stage: stage.start["tokens"])


def _event(stage: Path) -> Event | None:
    for path in sorted((stage / "events").glob("*.json")):
        data = json.loads(path.read_text())
        old, new = (Architecture.from_json(data["plan"][key]) for key in ("old", "new"))
        certificate = Certificate.from_json(data["certificate"]) if data["certificate"] else None
        return Event(old, new, certificate, data["seconds"])
    return None
