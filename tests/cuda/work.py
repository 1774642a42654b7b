"""What the processes of tests.cuda.devices do: arguments and results are of the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import growth
from growth import Architecture
from growth.span import Span, reach
from pretrain.checkpoint import Reader
from pretrain.data.documents import apart
from pretrain.engine import megatron
from pretrain.engine.engine import Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import fill, publish
from pretrain.event.certify import Before, certify
from pretrain.kernels.span import Within, attend_spans
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.distributed import ranks
from tests.distributed.test_transformer_xl import XL

SIZES = {"vocab": 101, "positions": 20, "hidden": 32, "layers": 3, "heads": 4, "head_dim": 8, "ffn": 48}
OLD = {
    "llama2": ranks.GQA,
    "gpt2": Architecture("gpt2", SIZES),
    "bert": Architecture("bert", {**SIZES, "types": 2, "labels": 2}),
    "qwen3_tied": Architecture("qwen3_tied", {**ranks.GQA.sizes, "head_dim": 12}),
    "transformer_xl": XL,
}
WIDER = {"hidden": 48, "layers": 5, "heads": 6, "ffn": 80}
NEW = {
    family: arch.replace(WIDER | ({"kv_heads": 3} if "kv_heads" in arch.sizes else {})) for family, arch in OLD.items()
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def steps(family: str, precision: str, recompute: str = "none", compiled: bool | None = None) -> Any:
    """(values before, [(loss, gradient norm)] of three steps, values after)."""
    engine = ranks.engine_for(OLD[family], {}, Numerics(precision, recompute, compile=compiled))
    ranks.begin(engine)
    before = ranks.collected(engine)
    losses = ranks.train(engine, ranks.batches(OLD[family], 3))
    after = ranks.collected(engine)
    engine.free()
    return before, losses, after


def documents_apart(family: str, precision: str) -> Any:
    """([(loss, gradient norm)] of three steps on documents that do not see each other, operations of attention)."""
    engine = _ready(family, precision)
    data = [apart(samples, int(samples["inputs"][0, 5])) for samples in ranks.batches(OLD[family], 3)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        losses = ranks.train(engine, data)
    engine.free()
    return losses, {event.key for event in seen.key_averages() if "attention" in event.key.lower()}


def spans(family: str, precision: str, compiled: bool) -> Any:
    """[(loss, gradient norm)] of three steps of a model whose heads have spans, and the spans after them."""
    arch = replace(OLD[family].replace({"head_dim": 16}), span=Span(max=12, ramp=5))
    engine = ranks.engine_for(arch, {}, Numerics(precision, compile=compiled))
    ranks.begin(engine)
    for owned in engine.owned:
        if owned.parameter.name.endswith(".span"):
            owned.weight.copy_(torch.linspace(0.1, 0.9, owned.weight.numel()))
    engine.publish_weights()
    engine.penalise_spans(0.3)
    losses = ranks.train(engine, ranks.batches(arch, 3))
    assert engine.spans
    by_head = engine.spans.by_head.copy()
    engine.free()
    return losses, by_head


def span_attention(compiled: bool) -> Any:
    """What attention within spans gives, and the gradients of queries, keys, values and spans, over several blocks and
    with documents."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 300, 16), (2, 2, 300, 16), (2, 2, 300, 16))
    z = torch.tensor([0.4, 32.3, 60.2, 150.7])
    given = [torch.randn(shape, generator=draw) for shape in shapes] + [z]
    given = [x.to(device()).requires_grad_() for x in given]
    begins = (torch.arange(300) // 140 * 140).expand(2, -1).to(device())
    q, k, v, span = given
    out = attend_spans(q, k, v, span, Within(32, reach(150.7, 32), 0.25, begins), compiled=compiled)
    towards = torch.randn(out.shape, generator=draw).to(device())
    return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, given, towards))]


def saved(family: str, root: str) -> Any:
    """Values of a run of three steps that ends with a checkpoint."""
    return ranks.trained_and_saved(OLD[family], {}, 3, root)[1]


def loaded(family: str, root: str) -> Any:
    """(values, losses of three more steps) of that checkpoint."""
    before, losses, _ = ranks.loaded(OLD[family], {}, f"{root}/step-00000000", 3, None)
    return before, losses


def resumed(family: str, precision: str, root: str) -> Any:
    """((losses, values) of six steps, the same with a stop in the middle)."""
    arch, data = OLD[family], ranks.batches(OLD[family], 6)
    how = Numerics(precision)
    straight = ranks.engine_for(arch, {}, how)
    ranks.begin(straight)
    losses = ranks.train(straight, data)
    values = ranks.collected(straight)
    straight.free()

    first = ranks.engine_for(arch, {}, how)
    state = ranks.begin(first)
    begun = ranks.train(first, data[:3])
    ranks.save(first, state, root)
    first.free()
    second = ranks.engine_for(arch, {}, how)
    with Reader(Path(root, "step-00000000")) as reader:
        state = State.from_reader(reader)
        fill(second, growth.identity(arch), reader)
    publish(second, state)
    begun += ranks.train(second, data[3:])
    found = ranks.collected(second)
    second.free()
    return (losses, values), (begun, found)


def grown(family: str, root: str, precision: str) -> Any:
    """(certificate as JSON, values grown, losses of three steps of two generations at two rates, their Adam steps)."""
    old, new = OLD[family], NEW[family]
    probe, batch = ranks.batches(old, 1)[0], ranks.batches(new, 1)[0]
    plan = growth.between(old, new, {}, seed=11, init_std=0.05)
    with Reader(Path(root, "step-00000000")) as reader:
        parent = ranks.engine_for(old, {}, Numerics(precision))
        fill(parent, growth.identity(old), reader)
        parent.publish_weights()
        before = Before.of(parent, probe)
        parent.free()
        engine = ranks.engine_for(plan.new, {}, Numerics(precision))
        state = _grown_state(plan, State.from_reader(reader))

        def load() -> None:
            fill(engine, plan, reader)
            publish(engine, state)

        load()
        certificate = certify(engine, plan, before=before, probe=probe, batch=batch, lr=1e-3)
        load()
        values = ranks.collected(engine)
    losses = []
    for data in ranks.batches(new, 3):
        result = engine.train_step(data, [1e-3, 1e-2])
        losses.append((result.loss, result.grad_norm))
    counted = list(engine.adam.steps)
    engine.free()
    return certificate.to_json(), values, losses, counted


def _grown_state(plan: growth.Plan, old: State) -> State:
    generations = plan.generations(old.generations)
    return State(plan.new, generations, (*old.births, Birth(0, "second", 0)), Progress(), None)


def attention(family: str) -> set[str]:
    """The operations whose names have to do with attention, of a step in bf16."""
    engine = _ready(family, "bf16")
    batch = ranks.batches(OLD[family], 1)[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        engine.train_step(batch, 1e-3)
    engine.free()
    return {event.key for event in seen.key_averages() if "attention" in event.key.lower()}


def memory_after_free() -> tuple[int, int]:
    """Bytes that torch holds on the device beside tensors that are alive, with an engine and after its end."""
    sizes = {**OLD["llama2"].sizes, "hidden": 512, "ffn": 1024, "vocab": 8192}
    arch = replace(OLD["llama2"], sizes=sizes)
    engine = ranks.engine_for(arch, {}, Numerics("bf16"))
    ranks.begin(engine)
    ranks.train(engine, ranks.batches(arch, 1))
    held = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    engine.free()
    return held, torch.cuda.memory_reserved() - torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def expandable_segments() -> bool:
    """Whether the device's memory is held so; where there is none, that there is nothing to hold."""
    if not torch.cuda.is_available():
        return True
    held = torch.empty(1 << 20, device="cuda")
    return any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot()) and held.is_cuda


def groups_made_again() -> tuple[list[float], int, int]:
    """(sums over the data-parallel group of before and after, process groups before and after)."""
    found, counts = [], []
    for _ in range(2):
        engine = _ready("llama2", "fp32")
        one = torch.ones((), device=device())
        dist.all_reduce(one, group=megatron.parallel_state.get_data_parallel_group())
        found.append(one.item())
        counts.append(len(dist.distributed_c10d._world.pg_map))
        engine.free()
        megatron._joined = None
    return found, counts[0], counts[1]


def _ready(family: str, precision: str) -> Engine:
    engine = ranks.engine_for(OLD[family], {}, Numerics(precision))
    ranks.begin(engine)
    return engine
