"""The file of a study: what all of its runs share, sizes from scratch, recipes of growth, and what is varied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pretrain.config import checks, reading
from pretrain.config.kinds import Count, Fraction, Positive
from pretrain.config.section import Section
from pretrain.errors import UserError

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Fixed(Section):
    """A size that is trained from scratch, with one budget or several."""

    name: str
    model: dict[str, Any]
    """What differs from the target's `model`."""
    budgets: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = (1.0,)
    """FLOPs of each run, as shares of those of the target from scratch; the tokens follow from them."""


@dataclass(frozen=True)
class Recipe(Section):
    """A curriculum whose stages end after shares of the study's tokens; with one stage, the target from scratch."""

    name: str
    stages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """Keys of each stage beyond those of `base`. Every stage but the last has `until`, too: the share of the study's
    tokens after which it ends, or a list of shares, each of which makes a curriculum of its own."""


@dataclass(frozen=True)
class Variants(Section):
    """What is tried with the recipes that were best, at all rates like these."""

    best: Positive = 3
    """With how many recipes, the best ones of the search."""
    grow: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, the keys of `grow` in all their stages but the first; what cannot be with a recipe is left out."""


@dataclass(frozen=True)
class Study(Section):
    """A study. Its runs are in OUTPUT/NAME."""

    name: str
    base: dict[str, Any]
    """Sections of a curriculum that all runs share; `model` is the shape of the target."""
    tokens: Positive
    """Tokens of the target from scratch and of every recipe."""
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """Peak learning rates (train.lr): every curriculum is run with each, and goes on with its best."""
    recipes: Annotated[tuple[Recipe, ...], Field(min_length=1)]
    search: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of its tokens with which a curriculum is run at each rate. Below 1, its best rate is then run with all
    of them, and only that run is compared. Warm-up, and all else that is given in tokens or steps, stays as it is."""
    fixed: tuple[Fixed, ...] = ()
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    """The first is that of the search; the others are run at the best rate only."""
    best: Count = 5
    """How many recipes, the best of the search, are run with the other seeds; the target from scratch always is."""
    variants: Variants = Variants()
    min_lr: Fraction = 0.0
    """The least learning rate (train.min_lr), as a share of the peak."""
    speed: Annotated[float, Field(ge=0)] = 0.0
    """FLOP/s of one run on the machine that it is meant for, to say how many hours all of them take."""
    output: str = "runs"

    @property
    def folder(self) -> Path:
        """The folder of its runs."""
        return Path(self.output) / self.name


_ADAPTER = TypeAdapter(Study)


def load(path: Path) -> Study:
    """Reads a study.

    Raises UserError, a line for each key, for keys that are unknown, missing or of a wrong type, and for what does not
    fit together. The curricula are checked where they are made, in pretrain.study.curricula.
    """
    raw = reading.read(path)
    try:
        study = _ADAPTER.validate_python(raw)
    except ValidationError as error:
        raise UserError(reading.explain(error, Study, str(path), raw)) from None
    checks.raise_for(_problems(study), str(path))
    return study


def _problems(study: Study) -> list[str]:
    lines = [*checks.bad_name(study.name), *checks.bad_output(study.output)]
    for key in ("train", "model", "data"):
        if not isinstance(study.base.get(key), dict):
            lines.append(f"base.{key}: missing; give the section that all runs share")
    if taken := sorted({"name", "seed", "output", "stages", "stacking"} & set(study.base)):
        lines.append(f"base.{taken[0]}: it is made by the study; remove it")
    named: list[Fixed | Recipe] = [*study.fixed, *study.recipes]
    names = [one.name for one in named]
    for one in named:
        lines += checks.bad_name(one.name)
        if names.count(one.name) > 1:
            lines.append(f"recipes: {one.name!r} is there twice; give each recipe and size a name of its own")
            break
    train = study.base.get("train")
    if isinstance(train, dict) and not all(isinstance(train.get(key), int) for key in ("seq_len", "global_batch")):
        lines.append("base.train: needs seq_len and global_batch, from which follows how many tokens a step has")
    lines += _of_the_study("base", train)
    for recipe in study.recipes:
        for number, stage in enumerate(recipe.stages):
            lines += _of_the_study(f"recipes {recipe.name}, stage {number + 1}", stage.get("train"))
    if not any(len(recipe.stages) == 1 for recipe in study.recipes):
        lines.append(
            "recipes: none is the target from scratch, which all are compared with: add {name: scratch, stages: [{}]}"
        )
    for recipe in study.recipes:
        for number, stage in enumerate(recipe.stages):
            last, where = number + 1 == len(recipe.stages), f"recipes {recipe.name}, stage {number + 1}: until"
            if last and "until" in stage:
                lines.append(f"{where}: the last stage ends with the study's tokens; remove it")
            elif not last and not _shares(stage.get("until")):
                lines.append(
                    f"{where}: {stage.get('until')!r}; give the share of the tokens after which it ends, or a list"
                )
    return lines


def _shares(until: Any) -> bool:
    shares = until if isinstance(until, list) else [until]
    return bool(shares) and all(isinstance(s, float) and 0 < s < 1 for s in shares)


def _of_the_study(where: str, train: Any) -> Iterator[str]:
    """Yields what `train` gives that the study gives to all alike."""
    instead = {"lr": "rates", "min_lr": "min_lr", "tokens": "tokens, and until", "epochs": "tokens, and until"}
    for key in instead if isinstance(train, dict) else ():
        if key in train:
            yield f"{where}: train.{key}: all that is compared has the same; remove it for {instead[key]} at the top"
