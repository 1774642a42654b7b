"""A growth event outside of training: the checkpoint that it makes, written in one process or several."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from growth import Box, MixCache, Plan
from growth.certificate import Certificate
from pretrain.checkpoint import AVERAGE, STORED, Manifest, Reader, check, write_checkpoint
from pretrain.checkpoint.manifest import plain
from pretrain.config import Stage
from pretrain.errors import UserError
from pretrain.event.plan import grown


def write(
    reader: Reader,
    target: Path,
    plan: Plan,
    stage: Stage,
    certificate: Certificate | None,
    began: float,
    processes: int = 1,
    progress: bool = False,
) -> Manifest:
    """Write the grown checkpoint, step 0 of the stage: weights, and moments and an average if the parent has them.

    began: when the event did, by the monotonic clock, in seconds. Stopped and called again, it goes on. Raises
    UserError as `write_checkpoint` does.
    """
    state = grown(reader, plan, stage)
    event: dict[str, Any] = {"stage": stage.name, "plan": plan.to_json(), "certificate": None}
    if certificate:
        event["certificate"] = certificate.to_json()
    event["seconds"] = time.monotonic() - began
    state = replace(state, events=(*state.events, event))

    caches: dict[str, MixCache] = {kind: {} for kind in STORED}

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        if kind == AVERAGE:
            return plan.evaluate(name, box, reader.read_average, cache=caches[kind])
        return plan.evaluate(name, box, reader.read, kind, cache=caches[kind])

    return write_checkpoint(
        target,
        0,
        [kind for kind in STORED if reader.has(kind)],
        read,
        state.fields(stage.name, stage.to_dict(), [birth.adam_step for birth in state.births]),
        {"source": reader.manifest.hash, "plan": plan.to_json(), "stage": stage.to_dict()},
        processes=processes,
        progress=progress,
    )


def written(target: Path, parent: Manifest, plan: Plan, stage: Stage) -> Manifest | None:
    """The manifest of a target that is the result of this very event; None if there is none, UserError for another."""
    if not (target / "manifest.json").exists():
        return None
    manifest = check(target)
    expected = (parent.hash, plain(plan.to_json()), plain(stage.to_dict()))
    if manifest.parent and (manifest.parent["hash"], manifest.events[-1]["plan"], manifest.config) == expected:
        return manifest
    raise UserError(f"{target} is there already and is something else: remove it, or choose another name")
