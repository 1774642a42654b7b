"""Which layers a model can do without, and the model that is left (Fan et al. 2019, section 4.2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import growth
from growth import Architecture, Box, Plan
from growth.evaluate.box_values import Read
from pretrain.data.samples import Samples
from pretrain.families.reference import objective
from pretrain.runtime.files import make_folder, write_json


def plan_of(arch: Architecture, kept: Sequence[int]) -> Plan:
    """The plan that leaves a model the layers with these numbers, each called by those blocks that call it now."""
    number = {layer: n for n, layer in enumerate(kept)}
    kinds = tuple(arch.kinds[layer] for layer in kept)
    calls = tuple(number[layer] for layer in arch.calls if layer in number)
    left = arch.replace({"layers": len(kept)}, kinds=kinds, calls=calls)
    policy = {"layers": {"operator": "drop", "keep": list(kept)}}
    return growth.between(arch, left, policy, seed=0, init_std=0.0)


def every_other(arch: Architecture) -> list[int]:
    """The first, third, fifth, ... layer of each kind."""
    return sorted(layer for kind in set(arch.kinds) for layer in _of_kind(arch, kind)[::2])


def _of_kind(arch: Architecture, kind: str) -> list[int]:
    return [layer for layer, its in enumerate(arch.kinds) if its == kind]


def held_out_loss(read: Read, arch: Architecture, samples: Samples) -> float:
    """What training minimises, in nats, on samples of held-out text, by the reference model."""
    with torch.no_grad():
        return float(objective(read, arch, samples))


def greedy(
    read: Read,
    arch: Architecture,
    layers: int,
    samples: Samples,
    notes: Path,
    about: Mapping[str, Any],
    progress: bool = False,
) -> list[tuple[int, float]]:
    """The layers to take away so that so many are left, in order, each with the held-out loss without it: every time
    that without which this loss is smallest.

    notes: a file that remembers what has been decided, for a call with the same `about` (JSON) after a stop; the caller
    removes it.
    """
    weights = {name: read("weight", name, Box.whole(t.shape)) for name, t in arch.tensors().items()}
    removed = _remembered(notes, about)[: arch.layers - layers]
    left = [layer for layer in range(arch.layers) if layer not in dict(removed)]
    with tqdm(total=sum(range(layers + 1, len(left) + 1)), desc="layers left out", disable=not progress) as bar:
        while len(left) > layers:
            losses = {}
            for layer in left:
                plan = plan_of(arch, [other for other in left if other != layer])
                losses[layer] = held_out_loss(_through(plan, weights), plan.new, samples)
                bar.update()
            best = min(losses, key=lambda layer: (losses[layer], layer))
            left.remove(best)
            removed.append((best, losses[best]))
            make_folder(notes.parent)
            write_json(notes, {"about": about, "removed": removed})
    return removed


def _through(plan: Plan, weights: Mapping[str, torch.Tensor]) -> Callable[[str, str, Box], torch.Tensor]:
    def stored(kind: str, name: str, box: Box) -> torch.Tensor:
        return weights[name][box.slices()]

    return lambda kind, name, box: plan.evaluate(name, box, stored, kind)


def _remembered(notes: Path, about: Mapping[str, Any]) -> list[tuple[int, float]]:
    """What an earlier call with the same `about` has decided; a damaged file is as none."""
    try:
        decided = json.loads(notes.read_bytes())
        return [(int(layer), float(loss)) for layer, loss in decided["removed"]] if decided["about"] == about else []
    except (OSError, ValueError, TypeError, KeyError):
        return []
