"""The curricula of a study, what each costs, and the runs that they make with a rate and a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.config import Curriculum
from pretrain.config.curriculum import curriculum_of
from pretrain.errors import UserError
from pretrain.estimate.flops import training_flops
from pretrain.study.keys import Study


@dataclass(frozen=True)
class Entry:
    """A curriculum without a rate and a seed: a recipe that grows at chosen times, or a size with a budget."""

    name: str
    recipe: str
    """The recipe's or the size's name."""
    stages: tuple[Mapping[str, Any], ...] = field(compare=False)
    """Keys of its stages, with their tokens. The name says which curriculum of a study it is."""
    until: tuple[float, ...] = ()
    """When it grows, as shares of the study's tokens."""
    target: bool = True
    """Whether it ends as the target, after the study's tokens."""

    @property
    def scratch(self) -> bool:
        """Whether it is trained from scratch."""
        return len(self.stages) == 1


@dataclass(frozen=True)
class Run:
    """An entry with a rate and a seed, and the share of its tokens that it is run with."""

    entry: Entry
    rate: float
    seed: int
    share: float = 1.0

    @property
    def name(self) -> str:
        """Name of the curriculum, and so of its folder."""
        short = f"-of{self.share:g}" if self.share < 1 else ""
        return f"{self.entry.name}-lr{self.rate:g}-seed{self.seed}{short}"


def entries(study: Study, path: Path) -> list[Entry]:
    """All curricula of a study, sizes from scratch first. Raises UserError, naming the file, for what cannot be one."""
    made = [
        *_fixed(study, path),
        *itertools.chain(*(_grown(study, recipe.name, recipe.stages) for recipe in study.recipes)),
    ]
    for entry in made:
        curriculum(study, Run(entry, study.rates[0], study.seeds[0]), path)
    if twice := [e.name for n, e in enumerate(made) if e.name in [other.name for other in made[:n]]]:
        raise UserError(f"{path}: {twice[0]} is the name of two curricula; rename a recipe, or remove a time of growth")
    return made


def variants(study: Study, of: Sequence[Entry]) -> list[Entry]:
    """The variants of these entries, but for those that cannot be (moments reset where old parts have another rate)."""
    made = [
        replace(
            entry,
            name=f"{entry.name}-{name}",
            recipe=f"{entry.recipe}-{name}",
            stages=(entry.stages[0], *({**s, "grow": {**s.get("grow", {}), **grow}} for s in entry.stages[1:])),
        )
        for entry in of
        for name, grow in study.variants.grow.items()
    ]
    return [entry for entry in made if _possible(study, entry)]


def _possible(study: Study, entry: Entry) -> bool:
    try:
        curriculum(study, Run(entry, study.rates[0], study.seeds[0]), Path(study.name))
    except UserError:
        return False
    return True


def _fixed(study: Study, path: Path) -> Iterator[Entry]:
    goal = _flops_per_token(study, {}, path) * study.tokens
    for size in study.fixed:
        per_token = _flops_per_token(study, size.model, path)
        for budget in size.budgets:
            tokens = _whole_steps(study, budget * goal / per_token)
            stage = {"name": "whole", "model": size.model, "train": {"tokens": tokens}}
            yield Entry(f"{size.name}-{budget:g}", size.name, (stage,), target=False)


def _grown(study: Study, recipe: str, stages: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    choices = [s["until"] if isinstance(s["until"], list) else [s["until"]] for s in stages[:-1]]
    for until in itertools.product(*choices):
        ends = [_whole_steps(study, share * study.tokens) for share in (*until, 1.0)]
        made = []
        for number, (stage, begin, end) in enumerate(zip(stages, [0, *ends], ends, strict=False)):
            keys = {key: value for key, value in stage.items() if key != "until"}
            train = {**stage.get("train", {}), "tokens": max(0, end - begin)}
            name = f"stage-{number + 1}" if len(stages) > 1 else "whole"
            made.append({"name": name, **keys, "train": train})
        varied = [f"{share:g}" for share, choice in zip(until, choices, strict=True) if len(choice) > 1]
        yield Entry("-".join([recipe, *varied]), recipe, tuple(made), until)


def _whole_steps(study: Study, tokens: float) -> int:
    step = study.base["train"]["seq_len"] * study.base["train"]["global_batch"]
    return max(1, round(tokens / step)) * int(step)


def _flops_per_token(study: Study, model: Mapping[str, Any], path: Path) -> float:
    stage = {"name": "whole", "model": model, "train": {"tokens": study.tokens}}
    run = Run(Entry("size", "size", (stage,)), study.rates[0], study.seeds[0])
    (resolved,) = curriculum(study, run, path).stages
    return training_flops(resolved.grown(), resolved.train.seq_len)


def document(study: Study, run: Run) -> dict[str, Any]:
    """The curriculum of a run, as a file has it."""
    rate = {"lr": run.rate, "min_lr": run.rate * study.min_lr}
    stages = [dict(stage) for stage in run.entry.stages]
    if run.share < 1:
        for stage in stages:
            stage["train"] = {**stage["train"], "tokens": _whole_steps(study, run.share * stage["train"]["tokens"])}
    return {
        **study.base,
        "name": run.name,
        "seed": run.seed,
        "output": str(study.folder),
        "train": {**study.base["train"], **rate},
        "stages": stages,
    }


def curriculum(study: Study, run: Run, path: Path) -> Curriculum:
    """The curriculum of a run. Raises UserError, naming the study's file and the run, when it cannot be one."""
    return curriculum_of(document(study, run), Path(f"{path} ({run.entry.name})"))
