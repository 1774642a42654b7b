"""Which layout a stage has, on how many ranks, and which batches fit it."""

from __future__ import annotations

from collections.abc import Iterator

from growth.architecture import Architecture
from pretrain.config.keys import Stage
from pretrain.config.train_keys import Train
from pretrain.errors import UserError
from pretrain.layout.layout import Layout
from pretrain.layout.work import totals


def ranks_of(stage: Stage, gpus: int) -> int:
    """How many ranks a stage asks for: tp * pp * dp, where an absent dp fills `gpus` of them, or is 1 beyond that."""
    model = stage.parallel.tp * stage.parallel.pp
    return model * (stage.parallel.dp or max(1, gpus // model))


def layout_of(stage: Stage, world: int, arch: Architecture | None = None) -> Layout:
    """The layout of a stage on `world` ranks; arch: its model by then (default: as the stage begins).

    Raises UserError when the ranks do not make up tp * pp * dp, naming the keys and the number that would fit, and when
    a batch does not fit the layout.
    """
    p = stage.parallel
    model_parallel = p.tp * p.pp
    dp = p.dp or world // model_parallel
    if dp < 1 or dp * model_parallel != world:
        fits = f"{dp * model_parallel} ranks" if p.dp else f"a multiple of {model_parallel} ranks"
        raise UserError(
            f"stage {stage.name!r}: parallel.tp {p.tp} x parallel.pp {p.pp}"
            + (f" x parallel.dp {p.dp}" if p.dp else "")
            + f" needs {fits}, and there {'is' if world == 1 else 'are'} {world}: start that many, "
            "or change parallel in the config"
        )
    layout = Layout.make(
        totals(arch or stage.architecture(), stage.train.seq_len),
        tp=p.tp,
        pp=p.pp,
        dp=dp,
        pipeline=p.pipeline,
        sequence_parallel=p.sequence_parallel,
    )
    for problem in misfits(stage.train, layout):
        raise UserError(f"stage {stage.name!r}: {problem}")
    return layout


def misfits(train: Train, layout: Layout) -> Iterator[str]:
    """Yields what is wrong with the batches of a stage that has this layout: key, values, what to do."""
    unit = layout.batch_unit(train.micro_batch)
    terms = [f"train.micro_batch {train.micro_batch}"]
    terms += [f"{layout.dp} data-parallel ranks"] if layout.dp > 1 else []
    terms += [f"parallel.pp {layout.pp} of an interleaved pipeline"] if layout.virtual > 1 else []
    for key in ("global_batch", "ramp_from", "ramp_by"):
        if (samples := getattr(train, key)) % unit:
            nearest = [n for n in (samples // unit * unit, (samples // unit + 1) * unit) if n]
            yield (
                f"train.{key}: {samples} samples are no multiple of {unit} ({' x '.join(terms)}), and a step is a "
                f"whole number of micro-batches on every data-parallel rank; use {' or '.join(map(str, nearest))}"
            )
