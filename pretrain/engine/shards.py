"""What a rank holds of a model: filled with a plan's values at a start, and handed to the checkpoint at a save."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from growth import Box, MixCache, Plan
from pretrain.checkpoint import AVERAGE, KINDS, STORED, Reader
from pretrain.engine.engine import Engine
from pretrain.engine.staging import Staging
from pretrain.runtime.malloc import given_back
from pretrain.state import State

FILLED_AT_ONCE = 16 << 20  # bytes of a plan's values


def fill(engine: Engine, plan: Plan, reader: Reader | None, kinds: Sequence[str] = KINDS) -> None:
    """Evaluate the plan on every box that this rank owns, into its ZeRO partition (not collective).

    Plans are evaluated on the host: straight into a partition that lies there, and in pieces that are copied to one on
    a device. Reads nothing but the blocks that those boxes are made of. Needs a few times `FILLED_AT_ONCE` of memory. A
    checkpoint without moments gives zeros for them. An average of weights is what the plan makes of that of the parent,
    read as if it were its weights, or of the parent's weights if it has none.
    """

    def read(kind: str, name: str, box: Box) -> Tensor:
        assert reader is not None
        return reader.read(kind, name, box) if reader.has(kind) else torch.zeros(box.shape)

    weights = AVERAGE if reader is not None and reader.has(AVERAGE) else "weight"
    kinds = (*kinds, AVERAGE) if engine.average else kinds

    def averaged(kind: str, name: str, box: Box) -> Tensor:
        return read(weights if kind == "weight" else kind, name, box)

    on_host = all(owned.weight.device.type == "cpu" for owned in engine.owned)
    staging = None if on_host else Staging(FILLED_AT_ONCE // 4, pinned=True)
    with given_back(FILLED_AT_ONCE // 2):
        caches: dict[str, MixCache] = {kind: {} for kind in kinds}
        for owned in engine.owned:
            for kind in kinds:
                fragment, cache = getattr(owned, kind), caches[kind]
                source, wanted = (averaged, "weight") if kind == AVERAGE else (read, kind)
                fragment.zero_()  # physical padding
                for box in owned.boxes:
                    view = box.view(fragment)
                    for part in box.box.parts(FILLED_AT_ONCE):
                        target = view[part.relative_to(box.box).slices()]
                        evaluate = partial(plan.evaluate, box.tensor, part, source, wanted, cache=cache)
                        if staging:
                            staging.put(target, evaluate)
                        else:
                            evaluate(out=target)


def publish(engine: Engine, state: State) -> None:
    """After `fill`: tell the optimizer the generations, and give every rank its model weights (collective)."""
    engine.describe_generations(
        lambda box: state.generations.of(state.arch.tensor(box.tensor), box.box), [b.adam_step for b in state.births]
    )
    engine.publish_weights()


def boxes(engine: Engine) -> dict[str, list[tuple[str, Box, Tensor]]]:
    """What this rank writes: per kind, the boxes that no other rank writes, as views of its partition."""
    written = [owned for owned in engine.owned if owned.parameter.owner]
    return {
        kind: [(box.tensor, box.box, box.view(getattr(owned, kind))) for owned in written for box in owned.boxes]
        for kind in (STORED if engine.average else KINDS)
    }
