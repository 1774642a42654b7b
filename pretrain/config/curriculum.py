"""A curriculum: read from YAML, checked, overridden from the command line, compared with a checkpoint's.

A file holds `name`, `seed`, `output`, `yours` and a list of `stages`; the sections `data`, `model`, `parallel`,
`train`, `grow`, `checkpoint`, `guard`, `log` and `eval` at its top are defaults, merged under every stage. See
configs/demo.yaml.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from growth.family import family
from pretrain.config import checks, mixtures, reading, recipes
from pretrain.config.keys import Stage, Yours
from pretrain.config.section import Section
from pretrain.errors import UserError

SECTIONS = ("data", "model", "parallel", "train", "grow", "checkpoint", "guard", "log", "eval")
"""The sections that may stand at the top of a file as defaults of every stage."""

RESUMABLE = (
    "data.corpus",
    "data.corpora[].corpus",
    "distill.teacher",
    "parallel",
    "train.tokens",
    "train.epochs",
    "train.micro_batch",
    "train.deterministic",
    "train.recompute",
    "train.recompute_layers",
    "train.compile",
    "train.eval_interval",
    "train.eval_bytes",
    "train.eval_memory",
    "checkpoint",
    "guard",
    "log",
    "eval",
)
"""The keys that may differ when a stage is resumed; everything else is part of what the checkpoint is.

The cursor makes sure that a corpus in another place is the same one, and distill.teacher_hash that a teacher is.
"""


@dataclass(frozen=True)
class _Document(Section):
    """The content of a file, with the sections at its top merged under its stages."""

    name: str
    """Name of the run's folder."""
    stages: tuple[Stage, ...]
    seed: int = 0
    """Seed of everything random."""
    output: str = "runs"
    """Folder that holds the runs."""
    yours: Yours | None = None
    """The model that the first stage is made of; absent: it begins with nothing."""


@dataclass(frozen=True)
class Curriculum(_Document):
    """All stages of a run, in order."""

    path: Path = Path()
    """The file that it was read from."""

    @property
    def folder(self) -> Path:
        """The run's folder: OUTPUT/NAME."""
        return Path(self.output) / self.name

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises a UserError that lists the stages if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        hint = reading.did_you_mean(name, names)
        raise UserError(f"{self.path}: no stage is named {name!r}{hint}; its stages are {', '.join(names)}")

    def parent(self, stage: Stage) -> Stage | None:
        """The stage whose checkpoint this one grows from; None for the first."""
        index = self._index(stage)
        return self.stages[index - 1] if index and not stage.from_scratch else None

    def override(self, stage: Stage, arguments: Sequence[str]) -> Stage:
        """The stage with command-line values (`--train.lr 3e-4`) in place of the file's, checked like the file.

        Prints help and exits on `--help`. Raises UserError for values that do not fit the curriculum.
        """
        name = stage.name
        parsed = tyro.cli(
            Stage,
            prog=f"python -m pretrain {self.path} --stage {name}",
            description=f"Stage {name!r} of {self.path}: what may be overridden, and the values it has there.",
            args=list(arguments),
            default=stage,
            use_underscores=True,
        )
        where = "command line"
        parsed = _validate(Stage, parsed.to_dict(), where)
        if (parsed.name, parsed.seed) != (stage.name, stage.seed):
            raise UserError(f"{where}: --name and --seed belong to the whole curriculum; change them in {self.path}")
        index = self._index(stage)
        stages = (*self.stages[:index], parsed, *self.stages[index + 1 :])
        checks.raise_for(checks.problems(stages, only=index), f"{self.path} with the {where}")
        _check_derived(stage, parsed, arguments, where)
        return parsed

    def _index(self, stage: Stage) -> int:
        return [other.name for other in self.stages].index(stage.name)


def _check_derived(stage: Stage, parsed: Stage, arguments: Sequence[str], where: str) -> None:
    """Raises UserError for a key whose value followed from one that is overridden now: it may or may not be meant to
    follow again."""
    given = {a.partition("=")[0].lstrip("-").replace("-", "_") for a in arguments if a.startswith("--")}
    old, new = stage.model, parsed.model
    axes = family(old.family).axes
    for key, followed, moved in (
        ("model.head_dim", old.head_dim * old.heads == old.hidden, (old.hidden, old.heads) != (new.hidden, new.heads)),
        ("model.kv_heads", old.kv_heads == old.heads, old.heads != new.heads),
        ("model.sinusoid", old.sinusoid == old.hidden, old.hidden != new.hidden),
        ("model.positions", old.positions == stage.train.seq_len, stage.train.seq_len != parsed.train.seq_len),
    ):
        if key.removeprefix("model.") in axes and followed and moved and key not in given:
            raise UserError(f"{where}: --{key} followed from what is overridden here: give it too (0: as if absent)")


T = TypeVar("T")


def load(path: str | Path) -> Curriculum:
    """Reads a curriculum.

    Raises:
        UserError: the file is missing or no YAML; a key is unknown, missing or of a wrong type (all of them at once);
            or the stages do not fit together. Names the file, the key and what to do.
    """
    path = Path(path)
    return curriculum_of(reading.read(path), path)


def curriculum_of(raw: Mapping[str, Any], path: Path) -> Curriculum:
    """The curriculum of a document that was read from a file. Raises as `load` does."""
    raw = reading.expand_stacking(raw, str(path))
    merged = recipes.expand(reading.merge_defaults(raw, SECTIONS), str(path))
    merged = mixtures.expand(merged, raw, str(path))
    document = _validate(_Document, merged, str(path), raw)
    curriculum = Curriculum(document.name, document.stages, document.seed, document.output, document.yours, path)
    misnamed = [*checks.bad_name(curriculum.name), *checks.bad_output(curriculum.output)]
    checks.raise_for([*misnamed, *checks.problems(curriculum.stages)], str(path))
    return curriculum


def to_yaml(stage: Stage) -> str:
    """The resolved configuration of a stage, as written to its folder."""
    return yaml.safe_dump(stage.to_dict(), sort_keys=False)


def stage_from(resolved: Mapping[str, Any], where: str) -> Stage:
    """The stage with a resolved configuration, such as a checkpoint holds. Raises UserError if it is not valid."""
    return _validate(Stage, dict(resolved), where)


def compare_for_resume(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Checks that a stage may go on from a checkpoint whose resolved configuration was `old`.

    A key that there was not when it was written has its default, which is what the stage has been trained with.

    Raises:
        UserError: something outside RESUMABLE differs; names each key and both values.
    """
    before = reading.flatten(stage_from(old, "the configuration of the checkpoint").to_dict())
    now = reading.flatten(new)
    lines = []
    for key in dict.fromkeys([*before, *now]):
        plain = re.sub(r"\[\d+\]", "[]", key)
        resumable = any(plain == name or plain.startswith(f"{name}.") for name in RESUMABLE)
        if before.get(key) != now.get(key) and not resumable:
            lines.append(f"  {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now")
    if lines:
        raise UserError(
            f"stage {new.get('name')!r} cannot be resumed with another configuration:\n" + "\n".join(lines) + "\n"
            f"Restore these values, or choose another run name. A resume may change {', '.join(RESUMABLE)}."
        )


_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Stage, _Document)
}  # kept, since they are slow to make


def _validate(kind: type[T], value: Any, where: str, raw: Any = None) -> T:
    try:
        return _ADAPTERS[kind].validate_python(value)
    except ValidationError as error:
        raise UserError(reading.explain(error, kind, where, value if raw is None else raw, SECTIONS)) from None
