"""What the ranks of a test do; see harness.run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import growth
from growth import Architecture
from pretrain.checkpoint import Checkpointer, Reader
from pretrain.data.samples import Samples, causal, part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import boxes, fill, publish
from pretrain.layout import Layout
from pretrain.layout.work import totals
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State

FP32 = Numerics()
SEQ_LEN, MICRO_BATCH, GLOBAL_BATCH = 16, 2, 12
GQA = Architecture(
    "llama2",
    {"vocab": 101, "hidden": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48},
    {"norm_eps": 1e-5, "softmax_scale": 8**-0.5, "rope_theta": 1e4},
)
GROWN = GQA.replace({"vocab": 203, "hidden": 48, "layers": 5, "heads": 8, "kv_heads": 4, "ffn": 80})
POLICY = {"vocab": "random"}


def layout(arch: Architecture, how: dict[str, Any]) -> Layout:
    return Layout.make(totals(arch, SEQ_LEN), **how)


def engine_for(arch: Architecture, how: dict[str, Any], numerics: Numerics = FP32, clip: float = 0.5) -> Engine:
    return Engine(arch, layout(arch, how), numerics, Adam(clip=clip), seq_len=SEQ_LEN, micro_batch=MICRO_BATCH)


def batches(arch: Architecture, count: int) -> list[Samples]:
    """Global batches of drawn tokens, the same on every rank."""
    draw = torch.Generator().manual_seed(0)
    vocab = arch.sizes["vocab"]
    tokens = torch.randint(0, vocab, (count, GLOBAL_BATCH, SEQ_LEN + 1), generator=draw)
    if arch.family != "bert":
        return [causal(each) for each in tokens]
    found: list[Samples] = []
    for number, each in enumerate(tokens[..., 1:]):
        draw.manual_seed(number)
        length = torch.randint(SEQ_LEN // 2, SEQ_LEN + 1, (GLOBAL_BATCH, 1), generator=draw)
        at = torch.arange(SEQ_LEN).expand_as(each)
        valid = (at < length).float()
        found.append(
            {
                "inputs": torch.where(torch.rand(each.shape, generator=draw) < 0.1, 3, each),
                "labels": each,
                "types": ((at > length // 2) & (at < length)).long(),
                "valid": valid,
                "mask": (torch.rand(each.shape, generator=draw) < 0.3).float() * valid,
                "next_sentence": torch.randint(0, 2, (GLOBAL_BATCH,), generator=draw),
            }
        )
    return found


def train(engine: Engine, data: list[Samples]) -> list[tuple[float, float]]:
    """(loss, grad norm) of one step per batch."""
    found = []
    for batch in data:
        result = engine.train_step(part(batch, engine.dp_rank, engine.layout.dp), 1e-2)
        found.append((result.loss, result.grad_norm))
    return found


def collected(engine: Engine) -> list[tuple[str, str, Any, np.ndarray]]:
    """(kind, tensor, box, values) of what this rank would write."""
    return [
        (kind, name, box, view.detach().cpu().clone().numpy())
        for kind, parts in boxes(engine).items()
        for name, box, view in parts
    ]


def begin(engine: Engine, seed: int = 3) -> State:
    """Draw the model from nothing, as a first stage does."""
    plan = growth.initial(engine.arch, seed, 0.05)
    state = State(engine.arch, plan.generations(), (Birth(0, "first", 0),), Progress(), None)
    fill(engine, plan, None)
    publish(engine, state)
    return state


def initial_and_trained(arch: Architecture, how: dict[str, Any], precision: str, recompute: str, steps: int) -> Any:
    """(values before, [(loss, grad norm)], values after) of a run from nothing."""
    engine = engine_for(arch, how, Numerics(precision, recompute))
    begin(engine)
    before = collected(engine)
    return before, train(engine, batches(arch, steps)), collected(engine)


def save(engine: Engine, state: State, root: str) -> None:
    with Checkpointer(Path(root)) as checkpointer:
        checkpointer.save(state.progress.step, boxes(engine), state.fields("first", {}, engine.adam.steps))


def trained_and_saved(arch: Architecture, how: dict[str, Any], steps: int, root: str) -> Any:
    """A run of `steps` that ends with a checkpoint."""
    engine = engine_for(arch, how)
    state = begin(engine)
    losses = train(engine, batches(arch, steps))
    save(engine, state, root)
    return losses, collected(engine)


def loaded(arch: Architecture, how: dict[str, Any], path: str, steps: int, again: str | None) -> Any:
    """(values, [(loss, grad norm)], values after) of a resume from a checkpoint, saved again before training."""
    engine = engine_for(arch, how)
    with Reader(Path(path)) as reader:
        state = State.from_reader(reader)
        fill(engine, growth.identity(arch), reader)
    publish(engine, state)
    before = collected(engine)
    if again:
        save(engine, state, again)
    return before, train(engine, batches(arch, 2 * steps)[steps:]), collected(engine)


def trained_through_a_save(arch: Architecture, how: dict[str, Any], steps: int, root: str) -> Any:
    """([(loss, grad norm)], values, this rank's copy of a tied embedding) of a run of twice `steps`, which is saved in
    its middle."""
    engine = engine_for(arch, how)
    state = begin(engine)
    data = batches(arch, 2 * steps)
    losses = train(engine, data[:steps])
    save(engine, state, root)
    losses += train(engine, data[steps:])
    tied = [p for _, p in engine.parameters if getattr(p, "shared_embedding", False)]
    return losses, collected(engine), tied[0].detach().numpy().copy() if tied else None


def trained_logits(arch: Architecture, how: dict[str, Any], steps: int) -> Any:
    """(values, logits of the first batch where they are) after training."""
    engine = engine_for(arch, how)
    begin(engine)
    train(engine, batches(arch, steps))
    logits = engine.logits(batches(arch, 1)[0])
    return collected(engine), None if logits is None else logits.numpy()


def grown(new: Architecture, how: dict[str, Any], path: str, steps: int, policy: Any = None) -> Any:
    """(values, blocks read, [(loss, grad norm)], values after) of a growth on load."""
    with Reader(Path(path)) as reader:
        old = State.from_reader(reader)
        plan = growth.between(old.arch, new, policy or POLICY, seed=11, init_std=0.05)
        engine = engine_for(plan.new, how)
        generations = plan.generations(old.generations)
        state = State(plan.new, generations, (*old.births, Birth(0, "second", 0)), Progress(), None)
        fill(engine, plan, reader)
        read = reader.bytes_read
    publish(engine, state)
    before = collected(engine)
    return before, read, train(engine, batches(new, steps)), collected(engine), engine.adam.steps


def geometry(arch: Architecture, how: dict[str, Any]) -> Any:
    """What DeepSpeed and Megatron made of a layout, to be compared with the arithmetic."""
    engine = engine_for(arch, how)
    mapped = []
    for index, (_, tensor) in enumerate(engine.parameters):
        if (mapping := getattr(tensor, "_hp_mapping", None)) is not None:
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            mapped.append((index, low.start, low.numel, high.start))
    marked = [bool(tensor.tensor_model_parallel) for _, tensor in engine.parameters]
    return dist.get_rank(), [p.name for p, _ in engine.parameters], mapped, marked
