"""What came of the tasks on a checkpoint, kept in the folder of its stage: evaluations/step-00000200.json.

An evaluation that failed is kept too, with its reason, so that it is said and not tried for ever: remove the file to
try again. The files outlive the checkpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from pretrain.checkpoint import Manifest, is_done
from pretrain.checkpoint.find import step_of, steps
from pretrain.config import Stage
from pretrain.runtime import documents
from pretrain.runtime.documents import Count, Number, Text
from pretrain.runtime.files import make_folder, write_json

FOLDER = "evaluations"
MOST_WAITING = 8
"""Checkpoints that are kept because they have not been evaluated; older ones are given up, or a disk would fill."""


class _Result(TypedDict):
    metrics: dict[Text, Number]
    errors: dict[Text, Number]
    samples: Count | None
    fewshot: Count | None


class _Kept(TypedDict):
    __pydantic_config__ = documents.CLOSED  # type: ignore[misc]
    checkpoint: Text
    step: Count
    tokens: Count
    flops: Number
    seconds: Number
    results: dict[Text, _Result]
    limit: Count | None
    harness: Text
    took: Number
    failed: dict[Text, Text]


@dataclass(frozen=True)
class Record:
    """The evaluation of a checkpoint.

    checkpoint: the hash of its manifest. step (of the stage), tokens, flops and seconds (of the run): its place. limit:
    the most samples of a task; None: all. harness: lm-eval and its version. took: seconds. results: of each task as
    `pretrain.judge.harness.evaluate` gives them. failed: why, for each task without a result.
    """

    checkpoint: str
    step: int
    tokens: int
    flops: float
    seconds: float
    results: Mapping[str, Mapping[str, Any]]
    limit: int | None
    harness: str
    took: float
    failed: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(manifest: Manifest, **values: Any) -> Record:
        """That of a checkpoint."""
        place = {key: manifest.progress.get(key, 0) for key in ("tokens", "flops", "seconds")}
        return Record(manifest.hash, manifest.step, **place, **values)

    def figures(self) -> dict[str, float]:
        """Each metric of each task by one name, as metrics have it: eval/TASK/METRIC."""
        return {
            f"eval/{task}/{metric}": value
            for task, result in self.results.items()
            for metric, value in result["metrics"].items()
        }

    def with_earlier(self, earlier: Record | None) -> Record:
        """With the tasks that an earlier evaluation of the same checkpoint has, and this one has not."""
        if earlier is None or (earlier.checkpoint, earlier.limit) != (self.checkpoint, self.limit):
            return self
        return replace(self, results={**earlier.results, **self.results})


def read(stage: Path, known: Collection[int] = ()) -> list[Record]:
    """All evaluations of a stage but those of `known` steps, by step. stage: its folder. Raises UserError for a file
    that is damaged."""
    paths = sorted((stage / FOLDER).glob("step-*.json"))
    return [Record(**documents.read(path, _Kept)) for path in paths if step_of(path.with_suffix("")) not in known]


def find(stage: Path, manifest: Manifest) -> Record | None:
    """The evaluation of one checkpoint of a stage. Raises UserError for a file that is damaged."""
    path = _path(stage, manifest.step)
    record = Record(**documents.read(path, _Kept)) if path.is_file() else None
    return record if record and record.checkpoint == manifest.hash else None


def keep(stage: Path, record: Record) -> None:
    """Keeps an evaluation, in place of that of another checkpoint of the same step."""
    make_folder(stage / FOLDER)
    write_json(_path(stage, record.step), asdict(record))


def forget(stage: Path, after: int) -> None:
    """Removes the evaluations of later steps."""
    for path in (stage / FOLDER).glob("step-*.json"):
        if (step_of(path.with_suffix("")) or 0) > after:
            path.unlink()


def is_due(stage: Stage, step: int, last: bool) -> bool:
    """Whether the checkpoint of this step is to be evaluated: at every interval, the last one of the stage, and the one
    from which it starts, which is there where it has just grown."""
    every = stage.eval.interval
    return bool(stage.eval.tasks) and (last or step == 0 or bool(every and step % every == 0))


def waiting(folder: Path, stage: Stage) -> list[Path]:
    """The checkpoints in the folder of a stage that are due and have not been evaluated, oldest first. Quick."""
    found = steps(folder / "checkpoints")  # the newest first
    last = found[0] if found and is_done(folder) else None
    due = [path for path in found if is_due(stage, step_of(path) or 0, path == last)]
    return [path for path in reversed(due[:MOST_WAITING]) if not _path(folder, step_of(path) or 0).is_file()]


def _path(stage: Path, step: int) -> Path:
    return stage / FOLDER / f"step-{step:08d}.json"
