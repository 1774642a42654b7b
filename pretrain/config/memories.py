"""Checks what a stage with a memory cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.config.keys import Stage


def problems(stage: Stage) -> Iterator[str]:
    """Yields what does not fit together with `train.memory`: key, values, what to do."""
    train, data, tp = stage.train, stage.data, stage.parallel.tp
    if not train.memory:
        if train.eval_memory:
            yield f"train.eval_memory: {train.eval_memory}, but train.memory is 0 or missing: give it, or remove this"
        return
    for key, value, usual in (
        ("data.packing", data.packing, "concatenate"),
        ("distill.teacher", stage.distill.teacher, ""),
    ):
        if value != usual:
            yield f"{key}: {value}, but train.memory is {train.memory}, which goes on from sample to sample; remove one"
    if stage.parallel.sequence_parallel:
        for key in ("memory", "eval_memory"):
            if getattr(train, key) % tp:
                yield (
                    f"train.{key}: {getattr(train, key)} is no multiple of parallel.tp {tp}, whose ranks hold equal "
                    "parts of it under parallel.sequence_parallel; change one of them or switch that off"
                )
