"""The groups of parameters that a stage treats alike, and how far each has moved since its growth event."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import isfinite, prod, sqrt
from pathlib import Path

from growth import Architecture, Generations, MixCache, Plan
from growth.architecture import LogicalTensor
from growth.family import LAYERS
from pretrain.checkpoint import Reader
from pretrain.config import Stage
from pretrain.engine.engine import Engine
from pretrain.engine.frozen import Frozen
from pretrain.engine.shards import FILLED_AT_ONCE, boxes
from pretrain.errors import UserError
from pretrain.runtime.comm import Comm
from pretrain.schedule.curve import rate_factors
from pretrain.stage.trained import Group
from pretrain.state import State

log = logging.getLogger(__name__)

Sums = dict[tuple[str, int], tuple[float, float]]
"""Of the elements of a tensor that are of a generation: sums of (end - start)^2 and of start^2."""


def groups(state: State, stage: Stage, frozen: Frozen) -> list[tuple[Group, list[tuple[str, int]]]]:
    """The groups by generation, in the order of the model; with each its tensors, and of which generation."""
    arch, factors = state.arch, rate_factors(state.births, stage)
    parts: dict[tuple[int, float], dict[int | str, list[LogicalTensor]]] = {}
    for name, tensor in arch.tensors().items():
        for generation in sorted(state.generations.present(tensor)):
            rate = 0.0 if frozen.has(arch, name) else factors[generation]
            place = tensor.spec.name if tensor.layer is None else tensor.layer
            parts.setdefault((generation, rate), {}).setdefault(place, []).append(tensor)
    found = []
    for (generation, rate), places in sorted(parts.items(), key=lambda item: (item[0][0], -item[0][1])):
        alike: dict[tuple[str, ...], list[int | str]] = {}
        for place, tensors in places.items():
            alike.setdefault(tuple(tensor.spec.name for tensor in tensors), []).append(place)
        for rows, where in alike.items():
            inside = [tensor for place in where for tensor in places[place]]
            count = sum(_count(state.generations, tensor, generation) for tensor in inside)
            born = state.births[generation].stage
            group = Group(_words(arch, where, rows), rows, generation, born, rate, count)
            if count:
                found.append((group, [(tensor.name, generation) for tensor in inside]))
    return found


def _words(arch: Architecture, where: list[int | str], rows: tuple[str, ...]) -> str:
    layers = [place for place in where if isinstance(place, int)]
    if not layers:
        return str(where[0])
    whole = {tuple(row.name for row in arch.rows_of(arch.kinds[layer])) for layer in layers}
    names = "" if whole == {rows} else ": " + ", ".join(row.rpartition("{layer}.")[2] for row in rows)
    return f"layers {_runs(layers)}{names}" if len(layers) > 1 else f"layer {layers[0]}{names}"


def _runs(numbers: list[int]) -> str:
    """0-2, 5 for 0, 1, 2, 5."""
    edges = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    runs = [(numbers[a], numbers[b - 1]) for a, b in pairwise(edges)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _count(generations: Generations, tensor: LogicalTensor, generation: int) -> int:
    """How many elements of a tensor are of this generation: the latest among its layer and its indices."""

    def until(last: int) -> int:
        if tensor.layer is not None and generations.along(LAYERS)[tensor.layer] > last:
            return 0
        axes = [axis for dim in tensor.spec.dims for axis in dim.axes]
        return prod(sum(n for g, n in generations.births[axis] if g <= last) for axis in axes)

    return until(generation) - until(generation - 1)


def moved(engine: Engine, state: State, stage: Stage) -> list[Group]:
    """The groups with how far each has moved since the growth event with which the stage began, on rank 0; elsewhere
    an empty list (collective). Each rank reads what its own part was made of, as at the start of the stage.

    Without `moved`, and a warning, where the parent's checkpoint cannot be read any more.
    """
    own: Sums = {}
    problem = ""
    try:
        own = _sums(engine, state)
    except (UserError, OSError) as error:
        problem = str(error)
    everyone = Comm().to_first((own, problem))
    if not everyone:
        return []
    problem = next((text for _, text in everyone if text), "")
    if problem:
        log.warning("how far the weights have moved is not known: %s", problem)
    total: Sums = {}
    for sums, _ in everyone:
        for key, (change, start) in sums.items():
            before = total.get(key, (0.0, 0.0))
            total[key] = (before[0] + change, before[1] + start)
    with_tensors = groups(state, stage, engine.frozen)
    return [replace(group, moved=None if problem else _share(total, keys)) for group, keys in with_tensors]


def _share(total: Mapping[tuple[str, int], tuple[float, float]], keys: Iterable[tuple[str, int]]) -> float | None:
    sums = [total[key] for key in keys if key in total]
    change, start = sum(a for a, _ in sums), sum(b for _, b in sums)
    return sqrt(change / start) if start and isfinite(change / start) else None


def _sums(engine: Engine, state: State) -> Sums:
    """Of the part of the model that this rank writes. Raises UserError where the parent is not there any more."""
    assert state.parent
    growths = [event["plan"] for event in state.events if "plan" in event and "averaged" not in event]
    plan = Plan.from_json(growths[-1])
    sums: Sums = {}
    cache: MixCache = {}
    with Reader(Path(state.parent["path"])) as reader:
        if reader.manifest.hash != state.parent["hash"]:
            raise UserError(f"{reader.path} is another checkpoint than the one that has grown")
        if Architecture.from_json(reader.manifest.architecture) != plan.old:
            raise UserError("layers came inside the stage")
        for name, box, view in boxes(engine)["weight"]:
            for part in box.parts(FILLED_AT_ONCE):
                start = plan.evaluate(name, part, reader.read, cache=cache).double()
                change = view[part.relative_to(box).slices()].cpu().double() - start
                ids = state.generations.of(state.arch.tensor(name), part)
                for generation in ids.unique().tolist():
                    of = ids == generation
                    before = sums.get((name, generation), (0.0, 0.0))
                    own = [float(values[of].square().sum()) for values in (change, start)]
                    sums[name, generation] = (before[0] + own[0], before[1] + own[1])
    return sums
