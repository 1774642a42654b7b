"""What happened in a run, read from its folder: for plots, reports and status."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from growth import Architecture, GrowthError
from growth.certificate import Certificate
from pretrain.checkpoint import is_done, schema
from pretrain.config import reading, stage_from
from pretrain.errors import UserError
from pretrain.judge import records as evaluated
from pretrain.judge.records import Record
from pretrain.runtime import documents
from pretrain.runtime.documents import Number
from pretrain.stage import metrics, trained
from pretrain.stage.trained import Group


@dataclass(frozen=True)
class Event:
    """A growth event, as a stage keeps it in its events folder. `seconds`: from its start to the next step.

    An event without a certificate was computed offline and not measured.
    """

    step: int
    """The step of the stage after which it happened: 0 if the stage grew from its parent, more for a patch."""
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
    """The resolved configuration, as in config.yaml."""
    records: tuple[dict[str, Any], ...]
    """The records of metrics.jsonl, in order; see pretrain.stage.metrics."""
    events: tuple[Event, ...]
    """Its growth events in order: from its parent, then its patches."""
    done: bool
    evaluations: tuple[Record, ...] = ()
    """What came of tasks on its checkpoints, by step."""
    trained: tuple[Group, ...] = ()
    """What it trains and what not, and, at its end, how far each part has moved."""

    @property
    def architecture(self) -> Architecture:
        """The architecture that it trains, after the events so far."""
        if self.events:
            return self.events[-1].new
        return stage_from(self.config, str(self.folder)).model.architecture()

    @property
    def start(self) -> dict[str, Any]:
        """Tokens, FLOPs and seconds of the run before the first step; not exact if that record is lost."""
        return self.records[0]

    @property
    def end(self) -> dict[str, Any]:
        """Tokens, FLOPs and seconds of the run after the last recorded step."""
        return self.records[-1]

    def reached(self, step: int) -> dict[str, Any]:
        """The first record from this step on, which is that of a patch after this step."""
        return next((record for record in self.records if record["step"] >= step), self.end)

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
    stages = [load_stage(path.parent) for path in sorted(folder.glob("*/metrics.jsonl"))]
    begun = [stage for stage in stages if stage.records]
    if not begun:
        raise UserError(f"{folder}: no stage of a run has written metrics here; give a run's folder, such as runs/demo")
    return sorted(begun, key=lambda stage: stage.start["tokens"])


def load_stage(folder: Path) -> StageHistory:
    """A stage, which may have no records yet. Raises UserError if the folder is not a stage's, or damaged."""
    try:
        # Evaluations have files of their own, of which those that came after the stage's end are too.
        records = tuple(r for r in metrics.read(folder / "metrics.jsonl") if not metrics.is_judgement(r))
        config = _config(folder / "config.yaml")
        events = tuple(_event(path) for path in sorted((folder / "events").glob("*.json")))
        evaluations, groups = tuple(evaluated.read(folder)), tuple(trained.read(folder))
    except (UserError, GrowthError) as error:
        reason = " ".join(str(error).split())  # errors of a configuration have a line each
        raise UserError(f"{folder}: not the folder of a stage, or damaged: {reason}") from error
    return StageHistory(folder.name, folder, config, records, events, is_done(folder), evaluations, groups)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = reading.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {documents.one_line(str(error))}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} has no configuration in it, but {documents.show(config)}")
    stage = stage_from(config, str(path))
    stage.model.architecture()
    return stage.to_dict()  # with the defaults of keys that the file leaves out


class _Kept(schema.Event):
    """An event in a stage's folder, which has a plan, its duration and, if it was measured, a certificate."""

    plan: schema.Plan  # type: ignore[misc]
    certificate: schema.Certificate | None  # type: ignore[misc]
    seconds: Annotated[Number, Field(ge=0)]  # type: ignore[misc]


def _event(path: Path) -> Event:
    step = re.fullmatch(r"step-(\d{8,12})", path.stem)
    if not step:
        raise UserError(f"{path}: an event is named after its step, step-00000000.json")
    data = documents.read(path, _Kept)
    if data["plan"]["old"] is None:
        raise UserError(f"{path}: an event without a model before it")
    old, new = (Architecture.from_json(data["plan"][key]) for key in ("old", "new"))
    certificate = Certificate.from_json(data["certificate"]) if data["certificate"] else None
    return Event(int(step[1]), old, new, certificate, data["seconds"])
