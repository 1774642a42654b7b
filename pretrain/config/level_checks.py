"""What must hold for models whose blocks make units of several tokens (`model.levels`)."""

from __future__ import annotations

from collections.abc import Iterator

from growth.family import Family
from pretrain.config.keys import Stage
from pretrain.config.levels import example, kinds


def misfits(stage: Stage, table: Family) -> Iterator[str]:
    """Yields what is wrong with `model.levels` and the lengths that follow from it: key, values, what would fit."""
    model = stage.model
    levels, deepest = model.levels, sum(takes.tokens < gives.tokens for takes, gives in table.streams.values())
    if not table.streams:
        if levels:
            yield f"model.levels: {list(levels)}, but {model.family} has no such blocks; remove it"
        return
    fits = example(deepest)
    if len(levels) % 2 == 0 or not 1 <= len(levels) // 2 <= deepest:
        what = list(levels) if levels else "missing"
        yield (
            f"model.levels: {what}; give the blocks before, between and behind 1 to {deepest} compressors and as many "
            f"expanders, such as {fits}"
        )
    else:
        unit, length = max(table.tokens(kind) for kind in kinds(table, levels)), stage.train.seq_len
        yield from _whole("train.seq_len", length, unit)
        if model.positions != length:
            yield from _whole("model.positions", model.positions, unit)
    if model.layers or model.order is not None:
        key, value = ("layers", model.layers) if model.layers else ("order", model.order)
        yield f"model.{key}: {value}, but model.levels says all blocks of {model.family}; remove it"
    if model.share > 1:
        yield f"model.share: {model.share}, but the blocks of model.levels are not shared; remove it"


def _whole(key: str, value: int, unit: int, ranks: int = 1) -> Iterator[str]:
    """Yields that a length is no multiple of the longest unit, on each of so many ranks that share it."""
    if value % (all_of := unit * ranks):
        among = f" on each of {ranks} tensor-parallel ranks" if ranks > 1 else ""
        yield (
            f"{key}: {value} is no multiple of {all_of}: the longest unit of model.levels has {unit} tokens{among}; "
            f"use {max(1, round(value / all_of)) * all_of}"
        )


def unfit(stage: Stage) -> Iterator[str]:
    """Yields what of a stage cannot be with units of several tokens: key, value, what would fit."""
    arch, parallel, train = stage.architecture(), stage.parallel, stage.train
    if not arch.table.streams:
        return
    if parallel.sequence_parallel:
        yield from _whole("train.seq_len", train.seq_len, arch.unit, parallel.tp)
    if arch.sizes["hidden"] % parallel.tp:
        yield (
            f"parallel.tp: {parallel.tp} does not divide model.hidden {stage.model.hidden}, by which compressors and "
            "expanders are cut; lower tp or change hidden"
        )
    if train.layer_drop.p:
        yield (
            f"train.layer_drop.p: {train.layer_drop.p:g}, but no compressor or expander of {stage.model.family} can be "
            "left out; use 0"
        )
    if stage.patches:
        yield "patches: they add usual layers, and model.levels has others; raise a number of it in a later stage"
    if stage.data.reset_attention:
        yield "data.reset_attention: true, but documents end inside units of several tokens; use false"
    if stage.distill.teacher and stage.distill.kind != "logits":
        yield (
            f"distill.kind: {stage.distill.kind} compares attention of tokens, and {stage.model.family} has attention "
            "of units of several too; use logits"
        )
