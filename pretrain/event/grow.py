"""A growth event, step by step: the model before is measured, the grown one filled, certified, and filled again."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from growth import Plan, identity
from growth.certificate import Certificate
from growth.describe import describe_plan
from growth.stream import Stream
from pretrain.checkpoint import Reader
from pretrain.config import Average, Stage
from pretrain.data.samples import Samples
from pretrain.engine.build import engine_of
from pretrain.engine.engine import Engine
from pretrain.engine.remembered import FORGOTTEN, recall
from pretrain.engine.shards import fill, publish
from pretrain.estimate.flops import event_flops
from pretrain.event.certify import Before, certify
from pretrain.event.plan import Growth
from pretrain.event.recompute import RECOMPUTED, recompute
from pretrain.event.source import Source
from pretrain.families.common.text import Feed
from pretrain.layout import Layout
from pretrain.runtime.files import write_json
from pretrain.runtime.ranks import is_first
from pretrain.state import State

log = logging.getLogger(__name__)


def grow(growth: Growth, stage: Stage, layout: Layout, feed: Feed) -> tuple[Engine, State]:
    """An engine with the grown model, and the state it is in, the event in it (collective).

    layout: of the grown model. In the same processes as whatever was before, which should be gone by then. Raises
    GrowthError when a plan that says that it preserves the function does not.
    """
    plan, source = growth.plan, growth.source
    probe, batch = _held_out(plan, stage, layout, feed)
    stream = Stream.of(plan)
    before, measured = _before(source, stage, layout, probe, remember=stream is not None)
    engine = engine_of(plan.new, layout, stage.train)

    def load(reader: Reader) -> State:
        state = growth.state_of(reader, plan, stage)
        fill(engine, plan, reader)
        recall(engine, reader, stream, len(batch["inputs"]))
        return state

    restored = source.restored(load)
    state, source = restored.loaded, replace(source, path=restored.path)
    assert state is not None
    if restored.path != measured:  # the one that was measured has damage where only growing has read it
        engine.free()
        return grow(replace(growth, source=source), stage, layout, feed)
    if is_first():
        restored.warn()
        log.info("grown from %s\n%s", restored.path, describe_plan(plan))
    publish(engine, state)
    certificate = certify(engine, plan, before=before, probe=probe, batch=batch, lr=stage.train.lr)
    lanes = stage.train.batch_at(state.progress.stage_tokens)

    def load_again(reader: Reader) -> str:
        fill(engine, plan, reader)
        return recall(engine, reader, stream, lanes)

    memory = source.restored(load_again).loaded
    certificate = replace(certificate, bits_per_byte_before=growth.bits_per_byte, memory=memory or "")
    publish(engine, state)
    if memory == FORGOTTEN:
        recompute(engine, feed, state.cursor, lanes)
        certificate = replace(certificate, memory=RECOMPUTED)
    if is_first() and certificate.claims and not certificate.preserved:
        log.error("%s", certificate)
    certificate.require()
    return engine, _after(state, plan, certificate, stage, layout)


def _held_out(plan: Plan, stage: Stage, layout: Layout, feed: Feed) -> tuple[Samples, Samples]:
    """Held-out text, the same on every rank: a probe that both models can read, and a batch for the new one.

    Both are of enough micro-batches for an interleaved pipeline.
    """
    assert plan.old is not None
    t, n = stage.train, stage.train.micro_batch * layout.pp
    length = min(t.seq_len, plan.old.sizes.get("positions", t.seq_len))
    length -= length % layout.tp if layout.sequence_parallel else 0  # ranks hold equal parts of a sequence
    both = min(plan.old.sizes["vocab"], plan.new.sizes["vocab"])
    return feed.probe(n, both, length), feed.batch(n * layout.dp)


def _before(source: Source, stage: Stage, layout: Layout, probe: Samples, remember: bool) -> tuple[Before, Path | None]:
    """What the model that will grow does, on an engine of its own, before that of the grown model is made; and which
    checkpoint it was. remember: behind what its lanes remember, if they do."""
    train = replace(stage.train, seq_len=probe["inputs"].shape[1], recompute_layers=1, average=Average())
    engine = engine_of(source.arch, layout.of_parent(source.arch, train.seq_len), train)

    def load(reader: Reader) -> None:
        plan = identity(source.arch)
        fill(engine, plan, reader, kinds=("weight",))
        recall(engine, reader, Stream.of(plan) if remember else None, len(probe["inputs"]) * engine.layout.dp)

    restored = source.restored(load)
    engine.publish_weights()
    before = Before.of(engine, probe)
    engine.free()
    return before, restored.path


def _after(state: State, plan: Plan, certificate: Certificate, stage: Stage, layout: Layout) -> State:
    """The state with the event: among the events of the run, and in its FLOPs."""
    assert plan.old is not None
    event: dict[str, Any] = {"stage": stage.name, "plan": plan.to_json(), "certificate": certificate.to_json()}
    if stage.grow.clip == "scale" and certificate.grad_norm_ratio:
        event["clip_scale"] = certificate.grad_norm_ratio
    flops = event_flops(plan.old, plan.new, layout, stage.train.seq_len, stage.train.micro_batch)
    progress = replace(state.progress, flops=state.progress.flops + flops, held_out=())
    return replace(state, progress=progress, events=(*state.events, event))


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
    if is_first():
        path = folder / "events" / f"step-{state.progress.step:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, event)
        log.info("growth event, %.1f s\n%s", seconds, certificate)
    return replace(state, events=(*earlier, event))
