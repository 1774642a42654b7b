"""What came of tasks on the checkpoints of a run: over its FLOPs, and on both sides of each growth event."""

from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.judge import records
from pretrain.judge.records import Record
from pretrain.report.history import Event, StageHistory
from pretrain.report.markdown import table

HEADLINES = ("acc_norm", "acc", "exact_match", "f1")
"""The metric of a task that is drawn and compared: the first of these that it has, by its name without the filter."""


def headline(metrics: Mapping[str, float]) -> str:
    """The metric of a task by which it is known."""
    named = [name for wanted in HEADLINES for name in metrics if name.partition("/")[0] == wanted]
    return (named or sorted(metrics))[0]


def evaluations(stages: Sequence[StageHistory]) -> list[tuple[str, Record]]:
    """All evaluations of a run with the names of their stages, in order: first those of a stage that was not trained
    here, which an import made."""
    run, known = stages[0].folder.parent, {stage.name for stage in stages}
    imported = [path.parent for path in sorted(run.glob(f"*/{records.FOLDER}")) if path.parent.name not in known]
    return [
        *((folder.name, record) for folder in imported for record in records.read(folder)),
        *((stage.name, record) for stage in stages for record in stage.evaluations),
    ]


def series(stages: Sequence[StageHistory]) -> dict[str, list[tuple[Record, float]]]:
    """For each task the evaluations that have it, in the order of the run, with its headline's value."""
    found: dict[str, list[tuple[Record, float]]] = {}
    for _, record in evaluations(stages):
        for task, result in record.results.items():
            if result["metrics"]:
                name = headline(result["metrics"])
                found.setdefault(f"{task}, {name}", []).append((record, result["metrics"][name]))
    return found


def around(stages: Sequence[StageHistory], stage: StageHistory, event: Event) -> tuple[Record | None, Record | None]:
    """The last evaluation before a growth event, and the first after it.

    A stage that has grown from its parent is evaluated at step 0; a checkpoint of a patch's step is from before it.
    """
    later = {other.name for other in stages[stages.index(stage) :]}
    earlier = [record for name, record in evaluations(stages) if name not in later]
    own = [record for record in stage.evaluations if event.step and record.step <= event.step]
    after = [record for record in stage.evaluations if record.step > event.step or not event.step]
    before = [*earlier, *own]
    return before[-1] if before else None, after[0] if after else None


def change(before: Record | None, after: Record | None) -> str:
    """The headline of each task that both have, in words; empty where there is none."""
    if before is None or after is None:
        return ""
    words = []
    for task, result in after.results.items():
        name = headline(result["metrics"]) if result["metrics"] else ""
        known = before.results.get(task, {"metrics": {}})["metrics"]
        if name in known:
            words.append(f"{task} {known[name]:.3f} to {result['metrics'][name]:.3f}")
    late = f" ({after.step} steps later)" if words and after.step else ""
    return ", ".join(words) + late


def markdown(stages: Sequence[StageHistory]) -> list[str]:
    """The table of all evaluations, and what failed; empty where there are none."""
    cells, failures = [], []
    for name, record in evaluations(stages):
        place = [name, str(record.step), f"{record.tokens:,}", f"{record.flops:.3g}"]
        for task, result in record.results.items():
            values = ", ".join(_value(metric, result) for metric in result["metrics"])
            shots = f", {result['fewshot']} shots" if result["fewshot"] else ""
            cells.append([*place, task, values, f"{result['samples']}{shots}"])
        failures += [f"- {name}, step {record.step}: {task}: {why}" for task, why in record.failed.items()]
    if not cells and not failures:
        return []
    harnesses = sorted({record.harness for _, record in evaluations(stages)})
    header = ["stage", "step", "tokens", "FLOPs", "task", "metrics", "samples"]
    parts = ["## Tasks", f"By {', '.join(harnesses)}; behind ± the standard error."]
    parts += [table(header, cells)] if cells else []
    return [*parts, "\n".join(["Failed:", *failures])] if failures else parts


def figures(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """All evaluations, for machines."""
    return [{"stage": name, **vars(record)} for name, record in evaluations(stages)]


def _value(name: str, result: Mapping[str, Any]) -> str:
    error = result["errors"].get(name)
    return f"{name} {result['metrics'][name]:.4f}" + ("" if error is None else f" ± {error:.4f}")
