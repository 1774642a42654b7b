"""What a checkpoint of Megatron-LM says of itself: the arguments of its run, and the constants of its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture
from pretrain.errors import UserError
from pretrain.families import FAMILIES
from pretrain.families.common.arguments import spelled
from pretrain.megatron_lm.pickles import Record
from pretrain.megatron_lm.source import number
from pretrain.runtime.documents import show


def arguments_of(state: Mapping[str, Any], given: Mapping[str, Any] | None, where: Path) -> dict[str, Any]:
    """The arguments in a checkpoint with those that are given instead; UserError where there are none."""
    stored = state.get("args")
    own = stored.fields if isinstance(stored, Record) else stored if isinstance(stored, dict) else {}
    args = {**own, **(given or {})}
    if not args:
        raise UserError(
            f"{where}: it says nothing of the arguments of its run (no args): write those of its model to a JSON file "
            "(num_layers, hidden_size, swiglu, ...), and name it with --args"
        )
    return spelled(args)


def architecture_of(args: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a run with these arguments. Raises UserError where no family has it, naming what differs."""
    odd = {name: family.megatron.odd(args) for name, family in FAMILIES.items() if family.megatron}
    family = min(odd, key=lambda name: len(odd[name]))
    if odd[family]:
        words = ", ".join(f"{key} = {show(args.get(key))}" for key in odd[family])
        raise UserError(f"{where}: {words}: no family of Cambium has such a model (the nearest is {family})")
    form = FAMILIES[family].megatron
    assert form is not None
    return form.architecture(family, args, where)


def constants(optimizer: Any, where: str, iteration: int) -> tuple[int, dict[str, Any]]:
    """The updates that an optimizer has made, and its constants, from its state dict as Megatron saves it."""
    state = _dict(optimizer)
    inner = _dict(state.get("optimizer")) or state
    groups = [group for group in inner.get("param_groups", ()) if isinstance(group, dict)]
    common = _dict(inner.get("state"))
    steps = [common.get("common_step"), *(group.get("step") for group in groups)]
    steps += [entry.get("step") for entry in common.values() if isinstance(entry, dict)]
    given = [step for step in steps if step is not None]
    step = number(given[0], f"{where}: the optimizer's step") if given else iteration
    known = {"lr", "betas", "eps", "weight_decay"}
    plain = (int, float, tuple, list)
    first = groups[0] if groups else {}
    return step, {key: value for key, value in first.items() if key in known and isinstance(value, plain)}


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
