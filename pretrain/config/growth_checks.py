"""Checks what must hold between a stage and the one that it grows from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import growth
from growth import GrowthError
from growth.operators import OPERATORS
from pretrain.config import factor_files, spans
from pretrain.config.grow_keys import LEARNED
from pretrain.config.keys import Stage
from pretrain.config.train_keys import Mup

GROWING = ("vocab", "positions", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn")
"""The axes of a model; none may shrink from one stage to the next."""


def problems(old: Stage, new: Stage, shapes: bool) -> Iterator[str]:
    """Yields what does not fit, one line each, with the key in the new stage. shapes: whether the shape of either stage
    is without a fault of its own."""
    if old.seed != new.seed:
        yield f"seed: {new.seed} differs from the curriculum's; give one seed at the top of the file"
    if old.model.family != new.model.family:
        yield (
            f"model.family: {new.model.family!r} after {old.model.family!r} in stage {old.name!r}; a curriculum grows "
            "one family"
        )
        return
    if new.from_scratch:
        return
    if old.train.mup != new.train.mup and old.train.mup.base_hidden and new.train.mup.base_hidden:
        yield (
            f"train.mup: {_given(new.train.mup)} after {_given(old.train.mup)} in stage {old.name!r}; a base model is "
            "that of a whole curriculum, so give it once, at the top of the file"
        )
    fraction, held_out = new.data.validation_fraction, old.data.validation_fraction
    if new.data.corpora and fraction != held_out:
        yield (
            f"data.validation_fraction: {fraction:g} after {held_out:g} in stage {old.name!r}, which would train on "
            "text that was held out; keep it"
        )
    before = old.at_end()
    named = {key for key, value in new.grow.policy().items() if key in OPERATORS and _shrinks(key, value)}
    # An order that is a word has no number of layers: the algebra compares its sublayers.
    shrunk = [axis for axis in GROWING if axis not in named and 0 < getattr(new.model, axis) < getattr(before, axis)]
    for axis in shrunk:
        size = getattr(before, axis)
        yield (
            f"model.{axis}: {getattr(new.model, axis)} is less than {size} in stage {old.name!r}; a stage grows, so "
            f"raise it to {size} or more{_instead(axis)}"
        )
    others = list(spans.misfits(old, new))
    yield from others
    if shrunk or others or not shapes:
        return  # the errors of the shape are reported already
    if before.depth and (new.model.order is None) != (before.order is None):
        yield (
            f"model.order: {new.model.order} after {before.order} in stage {old.name!r}; a layer that is attention and "
            "MLP in one cannot become sublayers, nor these one: begin with an order, such as sfsf, or have none at all"
        )
        return
    share, shared = new.model.share, before.share
    if share > shared or (new.model.layers == before.layers and shared % share):
        fits = ", ".join(str(k) for k in range(1, shared + 1) if shared % k == 0 and new.model.layers % k == 0)
        yield f"model.share: {share} after {shared} in stage {old.name!r}; shared layers are only untied: choose {fits}"
        return
    grow = new.grow
    if grow.moments == "reset" and (grow.old_lr, grow.new_lr) != (1, 1):
        yield (
            "grow.moments: reset makes all parts new, so that grow.old_lr and grow.new_lr cannot tell them apart; keep "
            "the moments, or change those"
        )
    if new.parallel.sequence_parallel and 0 < before.positions < new.parallel.tp:
        yield (
            f"parallel.tp: {new.parallel.tp} ranks cannot share the {before.positions} positions of stage "
            f"{old.name!r}, on which its growth is measured; lower it or switch parallel.sequence_parallel off"
        )
    rows = [[0]] * max(0, new.model.vocab - old.model.vocab)  # the real pieces make no difference to the checks
    policies = {"grow": grow}
    arch, target = before.architecture(), new.model.architecture()
    if grow.learn.steps:
        if not (keys := grow.learn.keys(arch, target)):
            yield f"grow.learn.steps: {grow.learn.steps}, but of {', '.join(grow.learn.only or LEARNED)} nothing grows"
        if grow.trial.candidates:
            yield "grow.learn: its maps take the place of operators, of which grow.trial tries several; choose one"
        policies = {"grow": grow.mapped({key: {"operator": "dense", factor_files.OPTION: ""} for key in keys})}
    for number, candidate in enumerate(grow.trial.candidates):
        where = f"grow.trial.candidates[{number}]"
        if unknown := sorted(set(candidate) - set(grow.OPERATORS)):
            choices = ", ".join(grow.OPERATORS)
            yield f"{where}: {', '.join(unknown)} cannot be tried; a candidate chooses among {choices}"
        else:
            policies[where] = grow.tried(candidate)
    for where, policy in policies.items():
        try:
            growth.between(
                arch,
                target,
                factor_files.stood_in(policy.policy(), arch, target),
                seed=new.seed,
                init_std=new.model.init_std,
                pieces=rows,
            )
        except GrowthError as error:
            yield f"{where}: {error}"


def _given(mup: Mup) -> str:
    return ", ".join(f"{key} {value}" for key, value in vars(mup).items() if value)


def _shrinks(key: str, value: Any) -> bool:
    """Whether a policy names an operator that makes its axis smaller."""
    name = value.get("operator") if isinstance(value, Mapping) else value
    return isinstance(name, str) and name in OPERATORS[key] and OPERATORS[key][name].shrinks


def _instead(axis: str) -> str:
    names = [name for name, operator in OPERATORS.get(axis, {}).items() if operator.shrinks]
    return f", or make it smaller on purpose: grow.{axis}: {' or '.join(names)}" if names else ""
