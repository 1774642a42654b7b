"""Checks what must hold inside a stage and between stages, beyond the type of each key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from growth import GrowthError
from growth.family import DISTANCES, family
from pretrain.config import growth_checks, level_checks, memories, mixtures, orders, spans, teachers
from pretrain.config.distill_keys import Distill
from pretrain.config.grow_keys import Patch
from pretrain.config.keys import Model, Stage
from pretrain.config.layouts import misfits
from pretrain.config.reading import join_problems
from pretrain.config.train_keys import Lora, Train
from pretrain.errors import UserError
from pretrain.layout.layout import Layout
from pretrain.layout.work import totals
from pretrain.runtime.storage import is_url

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""The names that a curriculum and a stage may have: those that can name a folder and a job everywhere."""


def problems(stages: Sequence[Stage], only: int | None = None) -> list[str]:
    """All that is wrong with these stages, one line each: key, values, what to do. only: the index of a single stage
    to check."""
    messages = [] if stages else ["stages: empty; a curriculum has at least one stage"]
    for index, stage in enumerate(stages):
        if only in (None, index):
            checks = (
                _names(stages, index),
                _finite("grow", stage.to_dict()["grow"]),
                mixtures.problems(stage.data.corpus, stage.data.corpora, stage.train.tokens),
                _shape(stage),
                _layout(stage),
                _budget(stage),
                _patches(stage),
                _teacher(stages, index),
                _evaluation(stage),
                spans.problems(stage),
                memories.problems(stage),
                _mirror(stage),
            )
            messages += [f"stages[{index}].{problem}" for check in checks for problem in check]
            if stage.train.lora.rank and (not index or stage.from_scratch):
                messages.append(
                    f"stages[{index}].train.lora.rank: {stage.train.lora.rank}, but adapters are of a model that has "
                    "been trained, and this stage begins with none; give them to a later stage"
                )
            if stage.train.until == "gstack" and (index + 1 == len(stages) or stages[index + 1].from_scratch):
                messages.append(f"stages[{index}].train.until: gstack, but no stage grows from this one; use tokens")
        if index and only in (None, index, index - 1):
            old = stages[index - 1]
            shapes = not any(_shape(old)) and not any(_shape(stage))
            messages += [f"stages[{index}].{problem}" for problem in growth_checks.problems(old, stage, shapes)]
    return messages


def _evaluation(stage: Stage) -> Iterator[str]:
    every, saved = stage.eval.interval, stage.checkpoint.interval
    if stage.eval.tasks and every % saved:
        fits = max(1, round(every / saved)) * saved
        yield f"eval.interval: {every} is no multiple of checkpoint.interval {saved}; use {fits}"


def _mirror(stage: Stage) -> Iterator[str]:
    url = stage.checkpoint.mirror
    if url and not is_url(url):
        yield f"checkpoint.mirror: {url!r} is no URL; write it like s3://bucket/runs or file:///folder"


def raise_for(messages: Sequence[str], where: str) -> None:
    """Raises one UserError for all problems, if there are any."""
    if messages:
        raise UserError(join_problems(where, messages))


def _names(stages: Sequence[Stage], index: int) -> Iterator[str]:
    name = stages[index].name
    if name in [stage.name for stage in stages[:index]]:
        yield f"name: {name!r} is the name of an earlier stage too; give each stage a name of its own"
    yield from bad_name(name)


def bad_name(name: str) -> Iterator[str]:
    """Yields what is wrong with the name of a curriculum or a stage, if anything is."""
    if not NAME.fullmatch(name):
        yield (
            f"name: {name[:120]!r} cannot name a folder and a job: use at most 100 letters (a to z), digits, '.', '_' "
            "and '-', and begin with a letter or a digit"
        )


def bad_output(folder: str) -> Iterator[str]:
    """Yields what is wrong with the folder of the runs, which scripts and a job's options name."""
    if not folder or not folder.isprintable() or "\\" in folder:
        yield f"output: {folder!r} cannot name a folder everywhere; leave out backslashes and what cannot be printed"


def _finite(where: str, value: Any) -> Iterator[str]:
    """Yields an error for every infinite or NaN number in the options of operators, which have no type to say so."""
    if isinstance(value, float) and not isfinite(value):
        yield f"{where}: {value} is no finite number; give one"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _finite(f"{where}.{key}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _finite(f"{where}[{number}]", item)


def _shape(stage: Stage) -> Iterator[str]:
    model, table = stage.model, family(stage.model.family)
    if not model.head_dim:
        yield (
            f"model.hidden: {model.hidden} is not divisible by model.heads {model.heads}; change one of them, or give "
            "model.head_dim"
        )
    elif model.head_dim % 2 and "rope_theta" in table.scalars:
        yield f"model.head_dim: {model.head_dim} is odd; rotary embeddings rotate pairs, so make it even"
    if model.heads % model.kv_heads:
        yield (
            f"model.kv_heads: {model.kv_heads} does not divide model.heads {model.heads}; every key-value head serves "
            "the same number of query heads"
        )
    yield from _order(model)
    yield from (unlike := list(level_checks.misfits(stage, table)))
    if unlike:
        return
    if model.layers % model.share:
        fits = ", ".join(str(k) for k in range(1, model.layers + 1) if model.layers % k == 0)
        yield f"model.share: {model.share} does not divide model.layers {model.layers}; choose one of {fits}"
    elif model.head_dim and model.heads % model.kv_heads == 0 and model.sinusoid % 2 == 0:
        for key, made in (("model.span", model.architecture), ("train.lora", stage.architecture)):
            try:
                made()
            except GrowthError as error:
                yield f"{key}: {error}"
                break
    if "kv_heads" not in table.axes and model.kv_heads != model.heads:
        yield f"model.kv_heads: {model.kv_heads}, but {model.family} has model.heads {model.heads} of them; remove it"
    if model.sinusoid and DISTANCES not in table.axes:
        yield f"model.sinusoid: {model.sinusoid}, but {model.family} has no embedding of distances; remove it"
    elif model.sinusoid % 2:
        yield f"model.sinusoid: {model.sinusoid} is odd; every frequency has a sine and a cosine, so make it even"
    if "positions" not in table.axes:
        if model.positions:
            yield f"model.positions: {model.positions}, but {model.family} has no rows of positions; remove it"
    elif stage.train.seq_len > model.positions:
        yield (
            f"train.seq_len: {stage.train.seq_len} is more than model.positions {model.positions}; a sample is no "
            "longer than the positions that the model has, so raise them or shorten it"
        )


def _order(model: Model) -> Iterator[str]:
    order, table = model.order, family(model.family)
    if order is None:
        if not model.layers and not table.streams:
            yield "model.layers: missing; give it, or model.order as a word of s and f"
        return
    if not {*orders.KINDS.values()} <= {*table.kinds}:
        yield f"model.order: {order}, but {model.family} has no attention and MLP apart; remove it"
    elif model.share > 1:
        yield f"model.share: {model.share}, but model.order is {order}, whose sublayers are not shared; remove one"
    elif not model.layers and not isinstance(order, str):
        yield "model.layers: missing; give half of the sublayers that model.order puts in order"
    yield from orders.misfits(order, model.layers)


def _layout(stage: Stage) -> Iterator[str]:
    model, parallel, train = stage.model, stage.parallel, stage.train
    for key, size in (("heads", model.heads), ("kv_heads", model.kv_heads), ("ffn", model.ffn)):
        if size % parallel.tp:
            yield (
                f"parallel.tp: {parallel.tp} does not divide model.{key} {size}; tensor-parallel ranks hold equal "
                f"shares of it, so lower tp or change {key}"
            )
    if not model.depth and model.order is not None and parallel.pp > 1:
        yield f"parallel.pp: {parallel.pp}, but a model without layers has nothing to split; set it to 1"
        return
    if parallel.sequence_parallel and train.seq_len % parallel.tp:
        yield (
            f"parallel.sequence_parallel: parallel.tp {parallel.tp} does not divide train.seq_len {train.seq_len}; "
            "change one of them or switch it off"
        )
    wrong = any(_shape(stage))
    work = model.depth if wrong else totals(stage.architecture(), train.seq_len)
    if not wrong:
        yield from level_checks.unfit(stage)
    try:
        layout = Layout.make(work, pp=parallel.pp, dp=parallel.dp or 1, pipeline=parallel.pipeline)
        yield from misfits(train, layout)
        if train.recompute == "full" and any(layers % train.recompute_layers for layers in layout.pipeline):
            parts = ", ".join(map(str, layout.pipeline))
            yield (
                f"train.recompute_layers: {train.recompute_layers} does not divide the layers of every pipeline part "
                f"({parts}); choose a divisor, such as 1"
            )
        if parallel.pp == 1 and layout.virtual > 1:
            yield f"parallel.pipeline: {layout.virtual} parts for one pipeline rank; remove it or raise parallel.pp"
        elif layout.virtual > 1 and model.levels:
            yield (
                f"parallel.pipeline: {layout.virtual} parts for each rank, but Megatron-core's interleaved pipeline "
                "sends streams of one shape only, and those of model.levels differ; give each rank one part"
            )
    except UserError as error:
        yield str(error) if str(error).startswith("parallel.pipeline") else f"parallel.pipeline: {error}"
    if stage.patches and parallel.pipeline is not None:
        yield "parallel.pipeline: a stage whose layers grow in patches is split anew at each of them; remove it"


def _budget(stage: Stage) -> Iterator[str]:
    train = stage.train
    yield from _ramp(train)
    if bool(train.tokens) == bool(train.epochs):
        yield (
            "train.tokens: missing; give it, or train.epochs"
            if not train.tokens
            else f"train.epochs: {train.epochs:g}, but train.tokens is {train.tokens}; give one of them"
        )
    if train.warmup and train.warmup_tokens:
        yield f"train.warmup: {train.warmup:g}, but train.warmup_tokens is {train.warmup_tokens}; give one of them"
    if train.tokens and train.tokens < train.global_batch * train.seq_len:
        yield (
            f"train.tokens: {train.tokens} is less than one step, train.global_batch {train.global_batch} x "
            f"train.seq_len {train.seq_len} = {train.global_batch * train.seq_len}; raise it or lower the batch"
        )
    if train.tokens and train.warmup_tokens > train.tokens:
        yield f"train.warmup_tokens: {train.warmup_tokens} is more than train.tokens {train.tokens}; lower it"
    for key in ("alpha", "on", "dropout", "rest"):
        if not train.lora.rank and (value := getattr(train.lora, key)) != getattr(Lora(), key):
            yield f"train.lora.{key}: {value}, but train.lora.rank is 0 or missing: give the adapters a rank, such as 8"
    if train.layer_drop.p and train.lora.rank and train.lora.rest == "freeze":
        yield (
            f"train.layer_drop.p: {train.layer_drop.p:g}, but where only train.lora is trained, a micro-batch without "
            "blocks has nothing to learn; choose 0, or train.lora.rest: train"
        )
    for key in ("base_heads", "base_ffn", "base_layers"):
        if not train.mup.base_hidden and (value := getattr(train.mup, key)):
            yield f"train.mup.{key}: {value}, but train.mup.base_hidden is 0 or missing: give that of the base model"
    if train.min_lr > train.lr:
        yield f"train.min_lr: {train.min_lr:g} is more than the peak train.lr {train.lr:g}; lower it"


def _ramp(train: Train) -> Iterator[str]:
    start, end, tokens = train.ramp_from, train.global_batch, train.ramp_tokens
    by = train.ramp_by or start
    if not start and (train.ramp_by or tokens):
        yield "train.ramp_from: missing; give the samples of the first steps, or no train.ramp_by and train.ramp_tokens"
    elif start and not tokens:
        yield "train.ramp_tokens: missing; give the tokens over which the steps grow, or no train.ramp_from"
    elif start >= end or (start and (end - start) % by):
        yield (
            f"train.ramp_from: {start} samples do not grow to train.global_batch {end} by {by} at a time; choose a "
            "smaller number that does, or another train.ramp_by"
        )
    elif train.tokens and tokens > train.tokens:
        yield f"train.ramp_tokens: {tokens} is more than train.tokens {train.tokens}; lower it"


def _teacher(stages: Sequence[Stage], index: int) -> Iterator[str]:
    stage = stages[index]
    name, earlier = stage.distill.teacher, {other.name: other for other in stages[:index]}
    if not name:
        if stage.distill != Distill():
            yield "distill.teacher: missing; name an earlier stage or a folder, or leave distill out"
        return
    yield from teachers.unfit(stage)
    if "/" in name:
        return
    if name not in earlier:
        known = f"one of {', '.join(earlier)}, or " if earlier else ""
        yield f"distill.teacher: {name!r} is no earlier stage; name {known}a folder, with a slash in it"
    elif not any(_shape(earlier[name])) and not any(_shape(stage)):
        yield from teachers.misfits(earlier[name].grown(), stage)


def due(patch: Patch, tokens: int) -> int:
    """After how many of a stage's `tokens` a patch is due.

    The number is rounded, since the product may lie just above the one that is meant, and at least 1, since a patch
    grows from a checkpoint of the stage.
    """
    return max(1, round(patch.at * tokens))


def _patches(stage: Stage) -> Iterator[str]:
    layers, train, steps_before = stage.model.layers, stage.train, 0
    if stage.patches and stage.model.share > 1:
        yield f"patches: model.share is {stage.model.share}, and a layer is added where none is shared; choose 1"
    if stage.patches and stage.model.order is not None:
        yield "patches: they add usual layers, and model.order has other ones; remove them, or it"
        return
    step = train.global_batch * train.seq_len
    for number, patch in enumerate(stage.patches):
        if number and patch.at <= stage.patches[number - 1].at:
            yield (
                f"patches[{number}].at: {patch.at:g} is not after {stage.patches[number - 1].at:g}, the patch before; "
                "write patches in the order in which they apply"
            )
        if patch.index > layers:
            yield (
                f"patches[{number}].index: {patch.index}, but there are {layers} layers by then; an index is the place "
                f"of the new layer in the resulting list, so choose 0 to {layers}"
            )
        layers += 1
        # A step makes at most one patch. With epochs or a ramp this number of steps is known only when the stage runs,
        # which then warns at its end.
        steps_before = max(steps_before + 1, -(-due(patch, train.tokens) // step))
        if train.tokens and not train.ramp_from and steps_before >= train.steps():
            yield (
                f"patches[{number}].at: {patch.at:g} of train.tokens {train.tokens} comes too late: the last of "
                f"{train.steps()} steps begins at {(train.steps() - 1) * step} tokens, and a step makes one patch at "
                "most; lower it, or raise train.tokens"
            )
