"""Growth plans in memory against a plain copy of the same bytes, operator by operator.

Every registered operator grows the same fp32 model by its own axis alone, block by block as a stage that starts does.
Times are CPU times of this process, so that other work on the machine does not count; operator and copy alternate.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import growth
from benchmarks import memory
from benchmarks.report import Report, spread
from growth import Architecture, Box, GrowthError, Plan, philox
from growth.operators import AXES, OPERATORS, Operator
from pretrain.checkpoint.flat import pieces
from pretrain.checkpoint.writer import PIECE
from pretrain.errors import UserError

MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py grow`."""
    sizes = parser.add_argument_group("model before growth (LLaMA-2)")
    for name, value in (("vocab", 8192), ("hidden", 512), ("layers", 4), ("heads", 8), ("ffn", 1408)):
        sizes.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--only", help="measure the operators whose `axis: name` contains this text")


def run(options: argparse.Namespace) -> Report:
    """Evaluate a plan of each operator, weights and moments; see the notes of the report for the columns."""
    torch.set_num_threads(1)
    if options.rounds < 1:
        raise UserError("--rounds must be at least 1")
    heads = options.heads
    arch = Architecture(
        "llama2",
        {
            "vocab": options.vocab,
            "hidden": options.hidden,
            "layers": options.layers,
            "heads": heads,
            "kv_heads": heads,
            "head_dim": options.hidden // heads,
            "ffn": options.ffn,
        },
    )
    old = _random(arch)
    rows: list[Mapping[str, Any]] = []
    operators = [o for named in OPERATORS.values() for o in named.values() if _axes(o, arch)]
    chosen = [o for o in operators if not options.only or options.only in f"{o.key}: {o.name}"]
    if not chosen:
        raise UserError(f"no operator contains {options.only!r}: {', '.join(f'{o.key}: {o.name}' for o in operators)}")
    for operator in tqdm(chosen, desc="operators", disable=None, leave=False):
        rows.append(_measure(operator, arch, old, options.rounds))
    settings = {"parameters before": arch.parameters(), **arch.sizes, "block": f"{PIECE // MIB} MiB", "threads": 1}
    notes = [
        "x copy: the speed of growth over that of copying as many bytes (medians of ratios within a round).",
        "moments: the map alone (exp_avg; nothing is drawn). weights: with what is drawn at random; drawing: its share",
        "of the time; map: weights without drawing. peak: memory above the destination and the old model.",
    ]
    return Report("Growth in memory against a plain copy", settings, rows, notes)


def _axes(operator: Operator, arch: Architecture) -> list[str]:
    return [axis for axis in AXES[operator.key] if axis in arch.sizes]


def _random(arch: Architecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in arch.tensors().items()}


def _plan(operator: Operator, arch: Architecture) -> Plan:
    """The operator alone: its axes doubled, or halved where it shrinks."""
    sizes = {a: arch.sizes[a] // 2 if operator.shrinks else arch.sizes[a] * 2 for a in _axes(operator, arch)}
    options: dict[str, Any] = {}
    if "at" in operator.options:
        options["at"] = [i + 1 for i in range(arch.layers)]
    vocab = arch.sizes["vocab"]
    spelt = [[i % vocab, (7 * i + 1) % vocab] for i in range(vocab)] if operator.key == "vocab" else None
    policy = {operator.key: {"operator": operator.name, **options}}
    return growth.between(arch, arch.replace(sizes), policy, seed=0, init_std=0.02, pieces=spelt)


def _measure(operator: Operator, arch: Architecture, old: Mapping[str, Tensor], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"operator": f"{operator.key}: {operator.name}"}
    try:
        plan = _plan(operator, arch)
    except GrowthError as error:
        return {**row, "not_measured": str(error)}
    new = {name: torch.zeros(tensor.shape) for name, tensor in plan.new.tensors().items()}
    source = {name: torch.ones(tensor.shape) for name, tensor in plan.new.tensors().items()}
    size = sum(4 * x.numel() for x in new.values())
    times: dict[str, list[float]] = {"weight": [], "map": [], "exp_avg": [], "drawn": []}
    above = 0
    for number in range(rounds + 1):
        copied = _cpu(lambda: [new[name].copy_(source[name]) for name in new])
        found = {}
        memory.reset_peak()
        before = memory.resident()
        with _drawing() as drawn:
            found["weight"] = _cpu(lambda: _evaluate(plan, old, new, "weight"))
        above = max(above, memory.peak() - before)
        found["exp_avg"] = _cpu(lambda: _evaluate(plan, old, new, "exp_avg"))
        found["map"] = found["weight"] - drawn[0]
        if number:  # the first round is not measured
            for kind, seconds in found.items():
                times[kind].append(copied / max(seconds, 1e-9))
            times["drawn"].append(drawn[0] / found["weight"])
    return {
        **row,
        "MiB": size / MIB,
        "moments_x_copy": spread(times["exp_avg"])[0],
        "map_x_copy": spread(times["map"])[0],
        "weights_x_copy": spread(times["weight"])[0],
        "drawing": f"{100 * spread(times['drawn'])[0]:.0f} %",
        "peak_MiB": above / MIB,
    }


def _evaluate(plan: Plan, old: Mapping[str, Tensor], new: Mapping[str, Tensor], kind: str) -> None:
    def read(kind: str, name: str, box: Box) -> Tensor:
        return old[name][box.slices()]

    for name, destination in new.items():
        for box in pieces(Box.whole(destination.shape), PIECE):
            plan.evaluate(name, box, read, kind, out=destination[box.slices()])


def _cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


@contextlib.contextmanager
def _drawing() -> Iterator[list[float]]:
    """Account for the time in the random generator while this is open."""
    draw, spent = philox.normal, [0.0]

    def timed(*args: Any, **how: Any) -> Tensor:
        begun = time.process_time()
        try:
            return draw(*args, **how)
        finally:
            spent[0] += time.process_time() - begun

    philox.normal = timed
    try:
        yield spent
    finally:
        philox.normal = draw
