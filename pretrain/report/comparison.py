"""Several runs on the same text: their losses over a common axis, and what each needed to reach the same loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from pretrain import families
from pretrain.errors import UserError
from pretrain.report import history, text
from pretrain.report.history import StageHistory

AXES = ("iterations", "tokens", "flops", "seconds")
"""What a run has used: optimizer steps, tokens, model FLOPs and seconds; the last two include growth events."""
METRICS = ("validation_bits_per_byte", "validation_loss", "bits_per_byte", "loss")
"""Runs are compared by the first of these metrics that all of them have."""
SMOOTHED = 20  # a training loss, which is that of one batch, is averaged over 1/20 of a line's records

Record = dict[str, float]


@dataclass(frozen=True)
class Mark:
    """A growth event on a line. record: the index, among the records of the line, of the first one after it."""

    record: int
    patch: bool
    seconds: float


@dataclass(frozen=True)
class Line:
    """Stages that grew out of each other, one after the other, as one line.

    records: the records of the stages, in order, with AXES counted from the beginning of the first stage of the run.
    Held-out losses are those of the average of the weights, where a stage keeps one.
    """

    name: str
    stages: tuple[StageHistory, ...]
    records: tuple[Record, ...]
    marks: tuple[Mark, ...]

    @property
    def done(self) -> bool:
        return all(stage.done for stage in self.stages)

    def curve(self, metric: str) -> list[Record]:
        """AXES and `value` at each place where the metric was measured and is finite.

        A training metric is averaged over the records before (see SMOOTHED).
        """
        measured = [record for record in self.records if isfinite(record.get(metric, nan))]
        width = 1 if metric.startswith("validation_") else max(1, len(measured) // SMOOTHED)
        points = []
        for index, record in enumerate(measured):
            window = [r[metric] for r in measured[max(0, index + 1 - width) : index + 1]]
            points.append({**{x: record[x] for x in AXES}, "value": sum(window) / len(window)})
        return points

    def reach(self, metric: str, target: float) -> Record | None:
        """What the line had used when the metric first was `target` or less, interpolated linearly between two records.

        None if the metric never was.
        """
        before = None
        for point in self.curve(metric):
            if point["value"] <= target:
                if before is None:
                    return {x: point[x] for x in AXES}
                share = (before["value"] - target) / (before["value"] - point["value"])
                return {x: before[x] + share * (point[x] - before[x]) for x in AXES}
            before = point
        return None


def lines(folders: Sequence[Path]) -> list[Line]:
    """The lines of run folders (one for each stage that has no parent) and of folders of single stages.

    Raises:
        UserError: a folder is not that of a run or a stage, or is given twice, or a stage in it goes on from one that
            is not there.
    """
    named_chains: list[tuple[Path, str, list[StageHistory]]] = []
    for folder in folders:
        if (folder / "metrics.jsonl").is_file():
            stage = history.load_stage(folder)
            if not stage.records:
                raise UserError(f"{folder}: the stage has not written metrics yet")
            named_chains.append((folder, stage.name, [stage]))
            continue
        chains = _chains(folder, history.load(folder))
        for chain in chains:
            named_chains.append((folder, chain[-1].name if len(chains) > 1 else folder.resolve().name, chain))
    short = [name for _, name, _ in named_chains]
    names = [
        name if short.count(name) == 1 else "/".join(chain[-1].folder.resolve().parts[-2:])
        for _, name, chain in named_chains
    ]
    for name, (folder, _, _) in zip(names, named_chains, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{folder}: {name} is there twice; give every run once, in a folder of its own name")
    return [_line(name, chain) for name, (_, _, chain) in zip(names, named_chains, strict=True)]


def _chains(folder: Path, stages: Sequence[StageHistory]) -> list[list[StageHistory]]:
    """The stages of a run by descent: a stage begins where its parent ended, to the same second."""
    chains: list[list[StageHistory]] = []
    for stage in stages:
        if not stage.start["tokens"]:
            chains.append([stage])
            continue
        place = [stage.start[x] for x in ("tokens", "seconds")]
        parents = [chain for chain in chains if [chain[-1].end[x] for x in ("tokens", "seconds")] == place]
        if not parents:
            raise UserError(
                f"{folder}: stage {stage.name!r} began after {place[0]:,} tokens, and no other stage here ends there: "
                "this is a run folder of another schedule, or of several; give the folder of the stage itself"
            )
        parents[0].append(stage)
    return chains


def _line(name: str, chain: Sequence[StageHistory]) -> Line:
    records: list[Record] = []
    marks: list[Mark] = []
    steps, growing = 0, 0.0
    for stage in chain:
        events = list(stage.events)
        for index, record in enumerate(stage.records):
            following = stage.records[index + 1]["step"] if index + 1 < len(stage.records) else float("inf")
            # The last record of an event's step is the validation after it.
            while events and (events[0].step < record["step"] or events[0].step == record["step"] < following):
                event = events.pop(0)
                growing += event.seconds
                marks.append(Mark(len(records), bool(event.step), event.seconds))
            records.append(
                {**_of_average(record), "iterations": steps + record["step"], "seconds": record["seconds"] + growing}
            )
        steps += stage.end["step"]
    return Line(name, tuple(chain), tuple(records), tuple(marks))


def _of_average(record: Record) -> Record:
    """A validation of a stage that keeps an average of its weights, as that of the average: this is what it offers."""
    start = "validation_average_"
    average = {f"validation_{key.removeprefix(start)}": value for key, value in record.items() if key.startswith(start)}
    return {**record, **average}


def common_metric(compared: Sequence[Line]) -> str:
    """The first of METRICS that every line has at two places at least; a loss per token only if all have one kind.

    Raises UserError when there is none, and when the runs were not measured on the same text.
    """
    stages = [stage for line in compared for stage in line.stages]
    kinds = {_kind(stage) for stage in stages}
    for metric in METRICS:
        if all(len(line.curve(metric)) > 1 for line in compared) and (metric.endswith("byte") or len(kinds) == 1):
            of_what = text.held_out if metric.startswith("validation_") else text.trained
            if differs := text.difference(of_what(stage) for stage in stages):
                raise UserError(f"the {metric} of these runs is of different text, so it does not compare: {differs}")
            return metric
    lines = [
        f"  {line.name}: {', '.join(m for m in METRICS if len(line.curve(m)) > 1) or 'nothing yet'}; "
        + " and ".join(sorted({_kind(stage) for stage in line.stages}))
        for line in compared
    ]
    raise UserError(
        "the runs have no common metric (a loss per token compares only over one vocabulary and objective):\n"
        + "\n".join(lines)
    )


def _kind(stage: StageHistory) -> str:
    """The vocabulary and the objective, on which a loss per token depends."""
    model, data = stage.config["model"], stage.config["data"]
    return ", ".join(filter(None, [f"{model['vocab']} pieces", families.of(model["family"]).text.objective(data)]))


def target(compared: Sequence[Line], metric: str) -> float:
    """The value that the last line ended with and the others are to reach. Raises UserError when it has diverged."""
    last = compared[-1]
    measured = [record for record in last.records if metric in record]
    if not isfinite(measured[-1][metric]):
        raise UserError(
            f"{last.name} has diverged: its {metric} is {measured[-1][metric]} after {measured[-1]['iterations']:,} "
            "iterations, so there is nothing that others could reach; give another run last"
        )
    return last.curve(metric)[-1]["value"]


def rows(compared: Sequence[Line], metric: str) -> list[dict[str, Any]]:
    """A row of the comparison for each line, as JSON.

    It has the line's name, whether it is done, its parameters at the end, what it used (AXES), the seconds of growth
    in that, and its final held-out and training loss (None if absent). `reach` is what it used until it reached the
    final value of the last line (None: never), and `ratio` is this over the last line's (None if either is nothing).
    """
    goal = target(compared, metric)
    yardstick = compared[-1].reach(metric, goal)
    assert yardstick  # the line reaches its own last value
    table = []
    for line in compared:
        reach = line.reach(metric, goal)
        held_out, training = (_final(line, name) for name in _pair(metric))
        table.append(
            {
                "run": line.name,
                "done": line.done,
                "parameters": line.stages[-1].architecture.parameters(),
                **{x: line.records[-1][x] for x in AXES},
                "growth_seconds": sum(mark.seconds for mark in line.marks),
                "held_out": held_out,
                "training": training,
                "reach": reach,
                "ratio": {x: reach[x] / yardstick[x] for x in AXES} if reach and all(yardstick.values()) else None,
            }
        )
    return table


def _pair(metric: str) -> tuple[str, str]:
    name = metric.removeprefix("validation_")
    return f"validation_{name}", name


def _final(line: Line, metric: str) -> float | None:
    points = line.curve(metric)
    ended = [record for record in line.records if metric in record]
    return points[-1]["value"] if points and isfinite(ended[-1][metric]) else None
