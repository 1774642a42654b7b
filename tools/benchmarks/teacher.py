"""What a teacher costs: a step of a BERT that learns from one, of each kind of `distill`, against a step of the same
student alone and the forward pass of the teacher up to what is learned from, alternated in one process.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

import growth
from benchmarks.report import Report, spread
from benchmarks.step import LR, Times, joined, no_read, synchronize
from growth import Architecture
from pretrain import families
from pretrain.cli.command import positive
from pretrain.config import Distill
from pretrain.layout import Layout

KINDS = {"minilm2": 0.5, "minilm": 0.0, "logits": 0.5}
"""Of what is learned the share of the labels: with minilm that of the published settings, which is none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py teacher`."""
    for name, value, what in (
        ("vocab", 8000, "pieces"),
        ("hidden", 384, "channels of the student"),
        ("teacher-hidden", 768, "channels of the teacher"),
        ("layers", 6, "layers of the student"),
        ("teacher-layers", 6, "layers of the teacher"),
        ("heads", 12, "heads of either"),
        ("relation-heads", 48, "heads of the relations of minilm2"),
        ("batch", 4, "sequences in a step"),
        ("seq-len", 128, "tokens in a sequence"),
        ("rounds", 8, "measured rounds"),
        ("threads", 1, "OpenMP threads of a step"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=value, help=f"{what} (default: %(default)s)")


def run(options: argparse.Namespace) -> Report:
    """Alternate the three passes of each kind and report their CPU times and the ratio, round by round."""
    torch.set_num_threads(options.threads)
    with joined(), contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints
        rows = [_row(kind, share, options) for kind, share in KINDS.items()]
    settings: dict[str, object] = {
        name: value for name, value in vars(options).items() if isinstance(value, int) and name != "json"
    }
    settings |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    settings |= {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset")}
    notes = [
        "ms: medians, of the CPU time of the process, which does not depend on what else runs; on a GPU, of time.",
        "labels: their share in what is learned. ratio: taught / (student + teacher), the median over rounds of that "
        "within a round.",
    ]
    return Report("A step with a teacher, single passes alternated", settings, rows, notes)


def _arch(options: argparse.Namespace, hidden: int, layers: int) -> Architecture:
    heads = {"heads": options.heads, "head_dim": hidden // options.heads}
    sizes = {"vocab": options.vocab, "positions": options.seq_len, "hidden": hidden, "layers": layers}
    return Architecture("bert", {**sizes, **heads, "ffn": 4 * hidden, "types": 2, "labels": 2})


def _row(kind: str, share: float, options: argparse.Namespace) -> dict[str, object]:
    from pretrain.engine.engine import Adam, Engine
    from pretrain.engine.megatron import Numerics
    from pretrain.engine.shards import fill
    from pretrain.engine.teacher import Teacher

    distill = Distill(kind=kind, share=share, relation_heads=options.relation_heads)  # type: ignore[arg-type]
    small = _arch(options, options.hidden, options.layers)
    large = _arch(options, options.teacher_hidden, options.teacher_layers)

    def engine() -> Engine:
        how = {"seq_len": options.seq_len, "micro_batch": options.batch}
        made = Engine(small, Layout.make(small.depth), Numerics(), Adam(), **how)
        fill(made, growth.initial(small, seed=0, init_std=0.02), None)
        made.publish_weights()
        return made

    alone, taught = engine(), engine()
    teacher = Teacher(large, taught.layout, taught.numerics, distill, options.seq_len)
    drawn = growth.initial(large, seed=1, init_std=0.02)
    with torch.no_grad():
        teacher.fill(lambda kind, name, box: drawn.evaluate(name, box, no_read, kind))
    taught.learn_from(teacher)
    ids = torch.randint(options.vocab, (options.batch, options.seq_len), generator=torch.Generator().manual_seed(0))
    samples = {name: x.to(taught.device) for name, x in families.of("bert").samples(ids, 0).items()}

    def said() -> None:
        with torch.no_grad():
            teacher.said(samples)

    passes: dict[str, Callable[[], object]] = {
        "student": lambda: alone.train_step(samples, LR),
        "teacher": said,
        "taught": lambda: taught.train_step(samples, LR),
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in tqdm(range(1 + options.rounds), desc=kind, disable=None, leave=False):
        for name, each in passes.items():
            taken = timed(each, taught.device)
            if number:
                seconds[name].append(taken)
    alone.free()
    taught.free()
    rounds = zip(seconds["student"], seconds["teacher"], seconds["taught"], strict=True)
    ratio, low, high = spread([both / (one + other) for one, other, both in rounds])
    return {
        "kind": kind,
        "labels": share,
        **{f"{name}_ms": 1e3 * spread(times)[0] for name, times in seconds.items()},
        "ratio": round(ratio, 3),
        "quartiles": f"{low:.3f} .. {high:.3f}",
    }


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds: of the CPU time of the process; on a GPU by the clock."""
    synchronize(device)
    begun = Times.now()
    call()
    synchronize(device)
    taken = begun.since()
    return taken.wall if device.type == "cuda" else taken.cpu
