"""How a stage starts: resumed from its own checkpoint, grown from its parent's, or drawn from nothing. One path."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch.distributed as dist

import growth
from growth import Architecture, Plan
from growth.certificate import Certificate
from pretrain.checkpoint import CorruptCheckpoint, Found, Reader, find, restore
from pretrain.config import Curriculum, Stage, compare_for_resume
from pretrain.data.samples import Samples
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import fill, publish
from pretrain.estimate.flops import event_flops
from pretrain.event.certify import Before, certify
from pretrain.event.plan import finished, grown, patch_plan, patched, plan_of
from pretrain.families.text import Feed
from pretrain.layout import Layout
from pretrain.runtime import startup
from pretrain.runtime.files import bits_per_byte, write_file
from pretrain.runtime.ranks import agreed
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State

log = logging.getLogger(__name__)


def _engine(arch: Architecture, layout: Layout, stage: Stage) -> Engine:
    t = stage.train
    startup.through("looking for checkpoints")
    engine = Engine(
        arch,
        layout,
        Numerics(t.precision, t.recompute, t.recompute_layers, t.compile),
        Adam(t.betas, t.eps, t.weight_decay, t.clip),
        seq_len=t.seq_len,
        micro_batch=t.micro_batch,
    )
    startup.through("engine")
    return engine


def start(curriculum: Curriculum, stage: Stage, layout: Layout, feed: Feed) -> tuple[Engine, State]:
    """An engine with every value in place, and the state it is in (collective).

    Raises UserError when the parent has not finished or has no checkpoint that verifies, or when a resume would
    change what the run is; GrowthError when the plan is impossible or a preserving one does not preserve.
    """
    own = _checkpoints(curriculum, stage)
    found = agreed(lambda: find(own))
    if found.manifest is not None:
        return _resume(own, found, stage, layout)
    if found.skipped:
        restore(own, lambda _: None)  # raises: there are checkpoints, and none can be loaded
    parent = curriculum.parent(stage)
    if parent is None:
        return _begin(curriculum, stage, layout, feed)
    manifest = agreed(lambda: finished(curriculum, parent))
    plan = plan_of(curriculum, stage, manifest, feed.tokenizer)
    before = agreed(lambda: bits_per_byte(curriculum.folder / parent.name))
    return _grow(_checkpoints(curriculum, parent), plan, grown, stage, layout, feed, before)


def patch(
    curriculum: Curriculum, stage: Stage, layout: Layout, feed: Feed, state: State, bits_per_byte: float | None
) -> tuple[Engine, State]:
    """The stage's next patch, from the checkpoint of this state (collective).

    A new engine in the same processes; the old one should be gone by then. bits_per_byte: of the model before.
    """
    number = state.arch.layers - stage.model.layers
    plan = patch_plan(curriculum, stage, number, state.arch)
    layout = Layout.make(
        plan.new.layers, tp=layout.tp, pp=layout.pp, dp=layout.dp, sequence_parallel=layout.sequence_parallel
    )
    step = state.progress.step
    return _grow(_checkpoints(curriculum, stage), plan, patched, stage, layout, feed, bits_per_byte, step)


def _checkpoints(curriculum: Curriculum, stage: Stage) -> Path:
    return curriculum.folder / stage.name / "checkpoints"


def _resume(root: Path, newest: Found, stage: Stage, layout: Layout) -> tuple[Engine, State]:
    """From the newest checkpoint that can be read; newest: the same, as far as is known."""
    assert newest.manifest is not None
    arch, bad = Architecture.from_json(newest.manifest.architecture), dict(newest.skipped)
    if stage.patches:  # some of them may have been applied
        layout = Layout.make(
            arch.layers, tp=layout.tp, pp=layout.pp, dp=layout.dp, sequence_parallel=layout.sequence_parallel
        )
    engine = _engine(arch, layout, stage)
    states: list[State] = []

    def load(reader: Reader) -> None:
        if reader.path in bad:
            raise CorruptCheckpoint(bad[reader.path])
        compare_for_resume(reader.manifest.config, stage.to_dict())
        states[:] = [State.from_reader(reader)]
        if states[0].arch == arch:
            fill(engine, growth.identity(arch), reader)

    found = restore(root, load)
    assert found.manifest is not None
    if Architecture.from_json(found.manifest.architecture) != arch:
        # An older one, from before a patch, which all ranks have agreed on and opened. They make its engine together,
        # here: in `load` the others would wait for a rank that cannot open it.
        engine.free()
        return _resume(root, found, stage, layout)
    _say_what_is_missing(found)
    publish(engine, states[0])
    if dist.get_rank() == 0:
        log.info("resumed from %s", found.path)
    return engine, states[0]


def _begin(curriculum: Curriculum, stage: Stage, layout: Layout, feed: Feed) -> tuple[Engine, State]:
    plan = plan_of(curriculum, stage, None, feed.tokenizer)
    engine = _engine(plan.new, layout, stage)
    state = State(plan.new, plan.generations(), (Birth(0, stage.name, 0),), Progress(), None)
    fill(engine, plan, None)
    publish(engine, state)
    return engine, state


def _grow(
    root: Path,
    plan: Plan,
    state_of: Callable[[Reader, Plan, Stage], State],
    stage: Stage,
    layout: Layout,
    feed: Feed,
    bits_per_byte: float | None,
    step: int | None = None,
) -> tuple[Engine, State]:
    """The newest checkpoint of `root`, or that of a step, grown: its shards, its state and its certificate."""
    assert plan.old is not None
    restored = partial(_restored, root, plan.old, step)
    t = stage.train
    # Enough micro-batches for an interleaved pipeline; held-out text, the same on every rank.
    length = min(t.seq_len, plan.old.sizes.get("positions", t.seq_len))
    length -= length % layout.tp if layout.sequence_parallel else 0  # ranks hold equal parts of a sequence
    both = min(plan.old.sizes["vocab"], plan.new.sizes["vocab"])
    probe = feed.probe(t.micro_batch * layout.pp, both, length)
    batch = feed.batch(t.micro_batch * layout.pp * layout.dp)
    before = _before(restored, plan.old, stage, layout, probe)
    engine = _engine(plan.new, layout, stage)
    states: list[State] = []

    def load(reader: Reader) -> None:
        states[:] = [state_of(reader, plan, stage)]
        fill(engine, plan, reader)

    def reload() -> None:
        restored(lambda reader: fill(engine, plan, reader))
        publish(engine, states[0])

    found = restored(load)
    _say_what_is_missing(found)
    publish(engine, states[0])
    certificate = certify(
        engine,
        plan,
        reload,
        before=before,
        probe=probe,
        batch=batch,
        lr=t.lr,
    )
    certificate = replace(certificate, bits_per_byte_before=bits_per_byte)
    if dist.get_rank() == 0:
        log.info("grown from %s\n%s", found.path, plan.describe())
        if certificate.claims and not certificate.preserved:
            log.error("%s", certificate)
    certificate.require()
    state = states[0]
    event: dict[str, Any] = {"stage": stage.name, "plan": plan.to_json(), "certificate": certificate.to_json()}
    if stage.grow.clip == "scale" and certificate.grad_norm_ratio:
        event["clip_scale"] = certificate.grad_norm_ratio
    flops = event_flops(plan.old, plan.new, t.seq_len, samples=t.micro_batch * layout.pp, dp=layout.dp)
    progress = replace(state.progress, flops=state.progress.flops + flops, held_out=())
    return engine, replace(state, progress=progress, events=(*state.events, event))


def _restored(root: Path, old: Architecture, step: int | None, load: Callable[[Reader], None]) -> Found:
    """As `restore`, of nothing but a checkpoint of the model that is to grow, if need be of one step.

    Others lie beside it: newer ones that a resume could not read, and those from before a parent's last patch.
    """

    def checked(reader: Reader) -> None:
        found = reader.manifest
        if Architecture.from_json(found.architecture) != old or step not in (None, found.step):
            raise CorruptCheckpoint(f"{reader.path}: not the model that is to grow, but one before or after it")
        load(reader)

    return restore(root, checked)


def _before(
    restored: Callable[[Callable[[Reader], None]], Found],
    old: Architecture,
    stage: Stage,
    layout: Layout,
    probe: Samples,
) -> Before:
    """What the model that will grow does, on an engine of its own, before that of the grown model is made.

    It is spread as the stage is; without tensor parallelism where it is too small to be cut like that.
    """
    tp, dp = layout.tp, layout.dp
    if any(old.sizes.get(axis, tp) % tp for axis in ("heads", "kv_heads", "ffn")):
        tp, dp = 1, dp * tp
    spread = Layout.make(old.layers, tp=tp, pp=layout.pp, dp=dp, sequence_parallel=layout.sequence_parallel)
    train = replace(stage.train, seq_len=probe["inputs"].shape[1], recompute_layers=1)
    engine = _engine(old, spread, replace(stage, train=train))
    restored(lambda reader: fill(engine, growth.identity(old), reader, kinds=("weight",)))
    engine.publish_weights()
    before = Before.of(engine, probe)
    engine.free()
    return before


def _say_what_is_missing(found: Found) -> None:
    if dist.get_rank() == 0:
        for path, reason in found.skipped:
            log.warning("skipped %s: %s", path, reason)
        if found.manifest and not found.manifest.has("exp_avg"):
            log.warning("%s has no Adam moments: they start at zero", found.path)


def finish_event(folder: Path, state: State, bits: float | None, seconds: float) -> State:
    """Complete the certificate of the event that has just happened, and keep it in the run folder.

    bits are the validation's, per byte, with the new vocabulary; seconds is what the start took, certificate included.
    """
    *earlier, event = state.events
    certificate: Certificate | str = "no certificate: it was grown offline without one; see tools/verify.py --parent"
    if event["certificate"]:
        known = bits if bits is not None and isfinite(bits) else None
        certificate = replace(Certificate.from_json(event["certificate"]), bits_per_byte_after=known)
        event = {**event, "certificate": certificate.to_json()}
    event = {**event, "seconds": seconds}
    if dist.get_rank() == 0:
        path = folder / "events" / f"step-{state.progress.step:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(event, indent=1, allow_nan=False) + "\n").encode())
        log.info("growth event, %.1f s\n%s", seconds, certificate)
    return replace(state, events=(*earlier, event))
