"""A training step of our engine against the same model in plain loops, single steps alternated in one process.

The yardsticks are bare Megatron-core (the same GPTModel, spec and attention) and transformers' LlamaForCausalLM, both
with torch.optim.AdamW; for several generations, transformers' model with a parameter for each block of one generation
(benchmarks.blocks). All see the same weights, batch and gradient clipping, and stay alive side by side: whole runs one
after the other differ by 20-30 % on a machine that does anything else.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import growth
from benchmarks import blocks
from benchmarks.report import Report, spread
from growth import Architecture
from pretrain.cli.command import positive
from pretrain.config.keys import Model
from pretrain.data.documents import STARTS, beginning, seen
from pretrain.data.samples import Samples, causal
from pretrain.errors import UserError
from pretrain.estimate.flops import training_flops
from pretrain.layout import Layout

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine

CLIP = 1.0  # every contestant clips the norm of its gradients, as training does
LR = 1e-4
SAME = {"fp32": 1e-4, "bf16": 2e-2}  # first losses agree to this, relative: rounding of the precision


@dataclass(frozen=True)
class Times:
    """Seconds of a step: by the clock, and of this process on the CPU, which other processes do not lengthen."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> "Times":
        return Times(time.perf_counter(), time.process_time())

    def since(self) -> "Times":
        now = Times.now()
        return Times(now.wall - self.wall, now.cpu - self.cpu)


Step = Callable[[Tensor], float]
"""One update from token ids [batch, seq_len + 1]; returns the loss in nats per token."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py step`."""
    sizes = parser.add_argument_group("model (LLaMA-2)")
    for name, value in (("vocab", 8192), ("hidden", 384), ("layers", 6), ("heads", 6), ("ffn", 1024)):
        sizes.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    sizes.add_argument("--kv-heads", type=int, help="key-value heads (default: as many as heads)")
    sizes.add_argument("--head-dim", type=int, help="default: hidden / heads")
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens in a sequence (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=16, help="measured rounds (default: %(default)s)")
    parser.add_argument("--warm-up", type=positive, default=3, help="rounds before them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of a step (default: %(default)s)")
    parser.add_argument(
        "--generations",
        type=_counts,
        metavar="1,2,...",
        help="our step with so many generations in the same weights, each at its own rate; "
        "and transformers' model with a parameter and a matrix product for each of their blocks",
    )
    parser.add_argument(
        "--compile", action="store_true", help="our step with train.compile: true as well, as another contestant"
    )
    parser.add_argument(
        "--documents",
        type=positive,
        metavar="TOKENS",
        help="our step on documents of so many tokens that do not see each other (data.reset_attention) beside the "
        "usual one, alone",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if any(not 1 <= count <= 256 for count in counts) or len(set(counts)) < len(counts):
        raise argparse.ArgumentTypeError(f"{text}: different numbers from 1 to 256, separated by commas")
    return counts


def run(options: argparse.Namespace) -> Report:
    """Alternate the steps and report each contestant's time and its ratio to ours, round by round.

    Raises UserError when the losses of the first step differ: then the contestants are not the same model.
    """
    arch = _architecture(options)
    torch.set_num_threads(options.threads)
    with joined():
        return _run(options, arch)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """With torch.distributed for this process alone, unless it is initialised already."""
    if dist.is_initialized():
        yield
        return
    from pretrain.runtime.ranks import join

    join()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _architecture(options: argparse.Namespace) -> Architecture:
    head_dim = options.head_dim or options.hidden // options.heads
    sizes = {
        "vocab": options.vocab,
        "hidden": options.hidden,
        "layers": options.layers,
        "heads": options.heads,
        "kv_heads": options.kv_heads or options.heads,
        "head_dim": head_dim,
        "ffn": options.ffn,
    }
    return Architecture(Model.family, sizes)


def _run(options: argparse.Namespace, arch: Architecture) -> Report:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(arch.sizes["vocab"], (options.batch, options.seq_len + 1), generator=generator)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints
        contestants = _contestants(arch, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = tokens.to(device)

    def timed(step: Step) -> tuple[Times, float]:
        synchronize(device)
        begun = Times.now()
        loss = step(tokens)
        synchronize(device)
        return begun.since(), loss

    losses = {name: timed(step)[1] for name, step in contestants.items()}
    ours = next(iter(losses.values()))
    for name, loss in losses.items():
        if not options.documents and not abs(loss - ours) <= SAME[options.precision] * abs(ours):
            raise UserError(f"the first loss of {name} is {loss} and ours {ours}: not the same model, so no benchmark")
    seconds: dict[str, list[Times]] = {name: [] for name in contestants}
    rounds = options.warm_up - 1 + options.rounds
    for number in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
        # Each round begins with another contestant: none always runs in the wake of the same one.
        order = list(contestants)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            taken, _ = timed(contestants[name])
            if number >= options.warm_up - 1:
                seconds[name].append(taken)
    return _report(options, arch, device, seconds, losses)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _contestants(arch: Architecture, options: argparse.Namespace) -> dict[str, Step]:
    """Name -> step of every contestant, all with the same weights."""
    from pretrain.engine import megatron
    from pretrain.engine.megatron import Numerics

    layout, numerics = Layout.make(arch.layers), Numerics(options.precision, compile=False)
    plan = growth.initial(arch, seed=0, init_std=0.02)
    weights = {name: plan.evaluate(name, growth.Box.whole(t.shape), no_read) for name, t in arch.tensors().items()}
    if options.generations:
        if options.compile:
            raise UserError("--compile and --generations: each is a comparison of its own; choose one")
        inside = {f"generations: {n}": s for n, s in _our_steps(arch, options, options.generations)[1].items()}
        models = {n: _transformers(arch, weights, numerics.dtype, options) for n in options.generations}
        split = {f"blocks: {n}": _transformers_step(model, blocks.split(model, n)) for n, model in models.items()}
        return inside | split
    engine, steps = _our_steps(arch, options, [1])
    if options.documents:
        return {"cambium": steps[1], "documents apart": lambda tokens: _apart_step(engine, options, tokens)}

    (bare,) = megatron.build(arch, layout, numerics, seq_len=options.seq_len, pp_rank=0, tp_rank=0)
    with torch.no_grad():
        for mine, theirs in zip(bare.parameters(), engine.chunks[0].parameters(), strict=True):
            mine.copy_(theirs)

    compiled = {"cambium compiled": _our_steps(arch, options, [1], compile=True)[1][1]} if options.compile else {}
    model = _transformers(arch, weights, numerics.dtype, options)
    return {
        "cambium": steps[1],
        **compiled,
        "bare megatron-core": _bare_step(bare, options.seq_len),
        "transformers": _transformers_step(model, [list(model.parameters())]),
    }


def _our_steps(
    arch: Architecture, options: argparse.Namespace, counts: Sequence[int], compile: bool = False
) -> tuple["Engine", dict[int, Step]]:
    """An engine, and for each count its step when the channels, neurons and vocabulary of its model were born in so
    many events. It is one engine for all, since the place in memory makes a difference of 2 %."""
    from pretrain.engine.engine import Adam, Engine
    from pretrain.engine.megatron import Numerics
    from pretrain.engine.shards import fill, publish
    from pretrain.schedule.curve import Birth
    from pretrain.schedule.progress import Progress
    from pretrain.state import State

    layout, numerics = Layout.make(arch.layers), Numerics(options.precision, compile=compile)
    engine = Engine(arch, layout, numerics, Adam(clip=CLIP), seq_len=options.seq_len, micro_batch=options.batch)
    described: dict[int, tuple[Any, list[int]]] = {}  # of each count: segments, and the steps of its generations

    def step(count: int, tokens: Tensor) -> float:
        if count in described:
            engine.adam.describe(*described[count])
        else:
            fill(engine, growth.initial(arch, seed=0, init_std=0.02), None)
            births = tuple(Birth(0, "bench", 0) for _ in range(count))
            publish(engine, State(arch, _born(arch, count), births, Progress(), None))
        loss = engine.train_step(causal(tokens), _rates(count)).loss
        described[count] = engine.adam.segments, engine.adam.steps
        return loss

    fill(engine, growth.initial(arch, seed=0, init_std=0.02), None)
    engine.publish_weights()
    return engine, {count: partial(step, count) for count in counts}


def _apart(options: argparse.Namespace) -> Samples:
    """Where documents of options.documents tokens begin, in a batch of nothing."""
    begins = (torch.arange(options.seq_len) % options.documents == 0).expand(options.batch, -1)
    return beginning({"inputs": torch.zeros(begins.shape)}, begins)


def _apart_step(engine: "Engine", options: argparse.Namespace, tokens: Tensor) -> float:
    starts = _apart(options)[STARTS].to(tokens.device)
    return engine.train_step({**causal(tokens), STARTS: starts}, _rates(1)).loss


def _born(arch: Architecture, count: int) -> growth.Generations:
    cuts = {axis: [arch.sizes[axis] * n // count for n in range(count + 1)] for axis in ("hidden", "ffn", "vocab")}
    grown = {axis: tuple((n, b - a) for n, (a, b) in enumerate(pairwise(at))) for axis, at in cuts.items()}
    return growth.Generations({**growth.Generations.first(arch).births, **grown}, count)


def _rates(count: int) -> list[float]:
    # They differ: generations of one rate end up as one, and then cost nothing.
    return [LR * (1 + n / count) for n in range(count)]


def no_read(kind: str, name: str, box: growth.Box) -> Tensor:
    raise AssertionError(f"a growth from nothing reads {kind} of {name} {box}")


def _plain_update(groups: Sequence[Sequence[torch.nn.Parameter]]) -> Callable[[Tensor], float]:
    """What a plain training loop does with a loss, with the parameters of each generation in a group."""
    rated = [{"params": list(group), "lr": lr} for group, lr in zip(groups, _rates(len(groups)), strict=True)]
    optimizer = torch.optim.AdamW(rated, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    parameters = [parameter for group in groups for parameter in group]

    def update(loss: Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return update


def _bare_step(model: torch.nn.Module, seq_len: int) -> Step:
    model.train()
    update = _plain_update([list(model.parameters())])
    position_S = torch.arange(seq_len, device=next(model.parameters()).device)

    def step(tokens: Tensor) -> float:
        batch = causal(tokens)
        position_BS = position_S.expand_as(batch["inputs"])
        return update(model(batch["inputs"], position_BS, None, labels=batch["labels"]).float().mean())

    return step


def _transformers(
    arch: Architecture, weights: Mapping[str, Tensor], dtype: torch.dtype, options: argparse.Namespace
) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    s = arch.sizes
    config = LlamaConfig(
        vocab_size=s["vocab"],
        hidden_size=s["hidden"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        head_dim=s["head_dim"],
        intermediate_size=s["ffn"],
        rms_norm_eps=arch.scalars["norm_eps"],
        max_position_embeddings=options.seq_len,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(dict(weights))
    return model.to(device="cuda" if torch.cuda.is_available() else "cpu", dtype=dtype).train()


def _transformers_step(model: torch.nn.Module, groups: Sequence[Sequence[torch.nn.Parameter]]) -> Step:
    update = _plain_update(groups)

    def step(tokens: Tensor) -> float:
        labels_BS = tokens[:, 1:].contiguous()
        # shift_labels: the labels are shifted here, as the others' are; transformers would drop the last one.
        return update(model(input_ids=tokens[:, :-1], labels=labels_BS, shift_labels=labels_BS).loss)

    return step


def _report(
    options: argparse.Namespace,
    arch: Architecture,
    device: torch.device,
    seconds: Mapping[str, list[Times]],
    losses: Mapping[str, float],
) -> Report:
    tokens = options.batch * options.seq_len
    flops = dict.fromkeys(seconds, training_flops(arch, options.seq_len) * tokens)
    if options.documents:
        of_apart = training_flops(arch, options.seq_len, seen=seen(_apart(options))) * tokens
        flops["documents apart"] = of_apart
    ours = next(iter(seconds.values()))
    rows = []
    for name, times in seconds.items():
        ratio, low, high = spread([theirs.wall / our.wall for theirs, our in zip(times, ours, strict=True)])
        cpu, *_ = spread([theirs.cpu / our.cpu for theirs, our in zip(times, ours, strict=True)])
        median, *_ = spread([t.wall for t in times])
        rows.append(
            {
                "contestant": name,
                "ms_per_step": 1e3 * median,
                "tokens/s": tokens / median,
                "model_GFLOP/s": flops[name] / median / 1e9,
                "its_time/ours": round(ratio, 3),
                "quartiles": f"{low:.3f} .. {high:.3f}",
                "CPU_time/ours": round(cpu, 3) if device.type == "cpu" else None,
                "first_loss": losses[name],
            }
        )
    settings = {
        "parameters": arch.parameters(),
        **arch.sizes,
        "batch": options.batch,
        "seq_len": options.seq_len,
        **({"documents": options.documents} if options.documents else {}),
        "precision": options.precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "rounds": options.rounds,
    }
    notes = [
        "its time/ours: median over rounds of the ratio within a round; above 1 it is slower than our engine"
        + (" with the first number of generations." if options.generations else "."),
        "CPU time/ours: the same for the CPU time of the process, which does not depend on what else is running.",
    ]
    if not options.generations:
        notes.append("Under bf16 our engine keeps fp32 masters; the plain loops update bf16 weights: less work.")
    return Report("Training step, single steps alternated", settings, rows, notes)
