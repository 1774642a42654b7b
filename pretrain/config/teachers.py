"""What a stage holds of its teacher, and whether the two fit together."""

from __future__ import annotations

from collections.abc import Iterator

from growth import Architecture
from growth.family import DISTANCES
from pretrain.config.distill_keys import Distill
from pretrain.config.keys import Stage
from pretrain.layout.work import attending


def held(teacher: Architecture, distill: Distill) -> Architecture:
    """What is held of a teacher: with relations its blocks up to the one that is learned from."""
    if distill.kind == "logits":
        return teacher
    calls = teacher.calls[: distill.teacher_layer or attending(teacher)[-1]]
    layers = 1 + max(calls)
    return teacher.replace({"layers": layers}, kinds=teacher.kinds[:layers], calls=calls)


def unfit(stage: Stage) -> Iterator[str]:
    """Yields what keeps a stage from having any teacher: key, values, what to do."""
    parallel, train, kind = stage.parallel, stage.train, stage.distill.kind
    if parallel.pp > 1:
        yield (
            f"parallel.pp: {parallel.pp}, but a teacher is computed as a whole, beside one layer of its student, and "
            "the other pipeline ranks would wait for it; use parallel.tp and parallel.dp"
        )
    if kind != "logits" and train.recompute == "full" and train.recompute_layers > 1:
        yield (
            f"train.recompute_layers: {train.recompute_layers}, but with distill.kind {kind} the layers below the one "
            "that is compared are recomputed one by one; use 1"
        )
    if kind != "logits" and train.layer_drop.p:
        yield (
            f"train.layer_drop: {train.layer_drop.p:g} leaves the layer out at times that distill.kind {kind} compares;"
            " use 0, or logits"
        )


def misfits(teacher: Architecture, stage: Stage, *, whole: bool = False) -> Iterator[str]:
    """Yields what is wrong with this teacher for a stage: key, values, what would fit.

    whole: whether every tensor-parallel rank has the whole of it, and not a part as of its student.
    """
    distill, tp, name = stage.distill, stage.parallel.tp, stage.distill.teacher
    if teacher.family != stage.model.family:
        yield (
            f"distill.teacher: {name} is a {teacher.family}, and this stage a {stage.model.family}; a teacher is of "
            "the family of its student"
        )
        return
    student, sizes = stage.model.architecture(), teacher.sizes
    if sizes["vocab"] != student.sizes["vocab"]:
        yield (
            f"distill.teacher: {name} has {sizes['vocab']} pieces and this stage model.vocab {stage.model.vocab}; they "
            "read the same tokens, so make them equal"
        )
    if stage.train.seq_len > sizes.get("positions", stage.train.seq_len):
        yield (
            f"distill.teacher: {name} has {sizes['positions']} positions, fewer than train.seq_len "
            f"{stage.train.seq_len}; shorten the samples or choose another teacher"
        )
    if sizes.get("types", 0) < student.sizes.get("types", 0):
        yield (
            f"distill.teacher: {name} knows {sizes['types']} kind(s) of segments, and samples have "
            f"{student.sizes['types']}; choose another teacher"
        )
    for axis in () if whole else ("heads", "kv_heads", "ffn"):
        if sizes.get(axis, tp) % tp:
            yield (
                f"distill.teacher: {name} has {sizes[axis]} {axis}, which parallel.tp {tp} does not divide; it is cut "
                "as its student is, so lower parallel.tp"
            )
    if distill.kind == "logits":
        return
    for whose, arch in ((name, teacher), ("this stage", student)):
        if not attending(arch):
            yield f"distill.kind: {distill.kind} compares attention, and {whose} has none; use logits"
            return
    layer = distill.teacher_layer
    if layer and layer not in attending(teacher):
        yield (
            f"distill.teacher_layer: {layer}, and {name} has attention in its layers "
            f"{', '.join(map(str, attending(teacher)))}; choose one of them, or 0 for the last"
        )
    if distill.kind == "minilm" and DISTANCES in sizes:
        yield (
            f"distill.kind: minilm compares what queries and keys make of each other, and in a {teacher.family} "
            "distances have a part in that; use minilm2, or logits"
        )
    if distill.kind == "minilm" and sizes["heads"] != student.sizes["heads"]:
        yield (
            f"distill.kind: minilm compares head with head, and {name} has {sizes['heads']} of them, this stage "
            f"model.heads {stage.model.heads}; use minilm2, or as many heads"
        )
    if distill.kind == "minilm2":
        for whose, arch in ((name, teacher), ("this stage", student)):
            width, heads = arch.sizes["heads"] * arch.sizes["head_dim"], distill.relation_heads
            if width % heads or heads % tp:
                yield (
                    f"distill.relation_heads: {heads} must divide heads x head_dim, {width} in {whose}, and be a "
                    f"multiple of parallel.tp {tp}"
                )
