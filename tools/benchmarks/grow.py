"""Growth plans in memory against a plain copy of the same bytes, operator by operator.

Every sparse operator grows the same fp32 model by its own axis alone, block by block as a stage that starts does; those
that add noise are measured without it as well. Times are CPU times of this process, so that other work on the machine
does not count for much; operator and copy alternate. Both write to memory that was written before.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import growth
from benchmarks import memory
from benchmarks.report import Report, spread
from growth import Architecture, Box, GrowthError, Plan
from growth.family import family, names
from growth.operators import AXES, OPERATORS, Operator
from growth.random import philox
from pretrain.cli.command import positive
from pretrain.config.keys import Model
from pretrain.engine.shards import FILLED_AT_ONCE
from pretrain.errors import UserError
from pretrain.runtime.malloc import given_back

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py grow`."""
    sizes = parser.add_argument_group("model before growth (LLaMA-2; for operators that it has not, GPT-2)")
    for name, value in (("vocab", 16384), ("hidden", 1024), ("layers", 2), ("heads", 16), ("ffn", 2816)):
        sizes.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--only", help="measure the operators whose `axis: name` contains this text")


def run(options: argparse.Namespace) -> Report:
    """Evaluate a plan of each operator, weights and moments; see the notes of the report for the columns."""
    torch.set_num_threads(1)
    sizes = {name: getattr(options, name) for name in ("vocab", "hidden", "layers", "heads", "ffn")}
    llama = {**sizes, "kv_heads": options.heads, "head_dim": options.hidden // options.heads}
    learned = {**sizes, "head_dim": options.hidden // options.heads, "positions": 1024}
    archs = [
        Architecture(Model.family, llama),
        *(Architecture(name, learned) for name in names() if {*family(name).axes} == {*learned} - {"layers"}),
        Architecture(Model.family, llama, calls=tuple(i // 2 for i in range(2 * options.layers))),
    ]
    cases = [case for case in _cases(archs) if not options.only or options.only in case[0]]
    if not cases:
        raise UserError(f"no operator contains {options.only!r}: {', '.join(name for name, _, _ in _cases(archs))}")
    _compile()
    rows: list[Mapping[str, Any]] = []
    olds: dict[str, dict[str, Tensor]] = {}
    for name, arch, plan in tqdm(cases, desc="operators", disable=None, leave=False):
        if arch.family not in olds:
            olds = {arch.family: _random(arch)}
        rows.append(_measure(name, plan, olds[arch.family], options.rounds))
    settings = {
        "parameters before": archs[0].parameters(),
        **sizes,
        "block": f"{FILLED_AT_ONCE // MIB} MiB",
        "threads": 1,
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    notes = [
        "x copy: the speed of growth over that of copying as many bytes (medians of ratios within a round).",
        "moments: exp_avg, where nothing is drawn. weights: with what is drawn at random, drawing: its share of the",
        "time; map: weights without drawing. x numpy: numbers drawn a second over numpy's own (float32, Philox).",
        "peak: memory above the destination and the old model.",
    ]
    return Report("Growth in memory against a plain copy", settings, rows, notes)


def _cases(archs: list[Architecture]) -> list[tuple[str, Architecture, Plan]]:
    """Every sparse operator on the first of the families that has it, alone."""
    cases = []
    for operator in (o for named in OPERATORS.values() for o in named.values() if o.name != "dense"):
        label = f"{operator.key}: {operator.name}"
        variants: list[tuple[str, dict[str, Any]]] = [(label, {})]
        if "snr_db" in operator.options:
            variants = [(f"{label}, no noise", {"snr_db": None}), (f"{label}, noise", {"snr_db": 10.0})]
        for name, options in variants:
            for arch in archs:
                with contextlib.suppress(GrowthError):
                    cases.append((name, arch, _plan(operator, arch, options)))
                    break
    return sorted(cases, key=lambda case: archs.index(case[1]))


def _compile() -> None:
    """The compiled loops, whose compiler takes memory of its own, on a small model."""
    sizes = {"vocab": 64, "hidden": 16, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn": 32}
    for _, arch, plan in _cases([Architecture(Model.family, sizes)]):
        _evaluate(plan, _random(arch), {name: torch.zeros(t.shape) for name, t in plan.new.tensors().items()}, "weight")


def _random(arch: Architecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in arch.tensors().items()}


def _plan(operator: Operator, arch: Architecture, options: Mapping[str, Any]) -> Plan:
    """The operator alone: its axes doubled, or halved where it shrinks. Raises GrowthError where it cannot."""
    axes = [axis for axis in AXES[operator.key] if axis in arch.sizes]
    if not axes:
        raise GrowthError(f"{arch.family} has no {operator.key}")
    sizes = {a: arch.sizes[a] // 2 if operator.shrinks else arch.sizes[a] * 2 for a in axes}
    at = {"at": [i + 1 for i in range(arch.layers)]} if "at" in operator.options else {}
    vocab = arch.sizes["vocab"]
    spelt = [[i % vocab, (7 * i + 1) % vocab] for i in range(vocab)] if operator.key == "vocab" else None
    policy = {operator.key: {"operator": operator.name, **at, **options}}
    new = arch.replace(sizes, calls=() if operator.key == "layers" else None)
    return growth.between(arch, new, policy, seed=0, init_std=0.02, pieces=spelt)


def _measure(name: str, plan: Plan, old: Mapping[str, Tensor], rounds: int) -> dict[str, Any]:
    new = {name: torch.zeros(tensor.shape) for name, tensor in plan.new.tensors().items()}
    source = {name: torch.ones(tensor.shape) for name, tensor in plan.new.tensors().items()}
    size = sum(4 * x.numel() for x in new.values())
    figures: dict[str, list[float]] = {"weight": [], "map": [], "exp_avg": [], "drawing": [], "x numpy": []}
    above = 0
    for number in range(rounds + 1):
        copied = _cpu(lambda: [new[name].copy_(source[name]) for name in new])
        memory.reset_peak()
        before = memory.resident()
        with _drawing() as drawn:
            weight = _cpu(lambda: _evaluate(plan, old, new, "weight"))
        above = max(above, memory.peak() - before)
        moments = _cpu(lambda: _evaluate(plan, old, new, "exp_avg"))
        if number:  # the first round is not measured
            figures["weight"].append(copied / weight)
            figures["map"].append(copied / max(weight - drawn[0], 1e-9))
            figures["exp_avg"].append(copied / moments)
            if drawn[1]:
                figures["drawing"].append(drawn[0] / weight)
                figures["x numpy"].append(_numpy(int(drawn[1])) / drawn[0])
    drew = bool(figures["drawing"])
    return {
        "operator": name,
        "family": plan.new.family,
        "MiB": size / MIB,
        "moments_x_copy": spread(figures["exp_avg"])[0],
        "map_x_copy": spread(figures["map"])[0],
        "weights_x_copy": spread(figures["weight"])[0],
        "drawing": f"{100 * spread(figures['drawing'])[0]:.0f} %" if drew else None,
        "drawing_x_numpy": spread(figures["x numpy"])[0] if drew else None,
        "peak_MiB": above / MIB,
    }


def _numpy(count: int) -> float:
    """Seconds that numpy takes for as many normal numbers, measured on up to 2^22."""
    some = min(count, 1 << 22)
    generator, out = np.random.Generator(np.random.Philox(key=0)), np.empty(1 << 16, dtype=np.float32)
    seconds = _cpu(lambda: [generator.standard_normal(out=out, dtype=np.float32) for _ in range(0, some, len(out))])
    return seconds * count / (-(-some // len(out)) * len(out))


def _evaluate(plan: Plan, old: Mapping[str, Tensor], new: Mapping[str, Tensor], kind: str) -> None:
    def read(kind: str, name: str, box: Box) -> Tensor:
        return old[name][box.slices()]

    cache: growth.MixCache = {}
    with given_back(FILLED_AT_ONCE // 2):
        for name, destination in new.items():
            for box in Box.whole(destination.shape).parts(FILLED_AT_ONCE):
                plan.evaluate(name, box, read, kind, out=destination[box.slices()], cache=cache)


def _cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


@contextlib.contextmanager
def _drawing() -> Iterator[list[float]]:
    """Account for the random generator while this is open: (seconds, numbers)."""
    draw, spent = philox.normal, [0.0, 0]

    def timed(*args: Any, **how: Any) -> Tensor:
        begun = time.process_time()
        found = draw(*args, **how)
        spent[0] += time.process_time() - begun
        spent[1] += found.numel()
        return found

    philox.normal = timed
    try:
        yield spent
    finally:
        philox.normal = draw
