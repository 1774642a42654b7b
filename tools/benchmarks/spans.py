"""What attention costs when its heads have spans (`model.span`): forward and backward, against causal attention over
all of a sample (torch's scaled_dot_product_attention), alternated in one process.

FLOPs are those that a run counts. The first row is a span as long as the ramp.
"""

import argparse
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import Report, spread
from benchmarks.step import synchronize
from benchmarks.teacher import timed
from growth import Architecture
from growth.span import Span, keys_of, reach
from pretrain.cli.command import positive
from pretrain.kernels.span import Within, attend_spans
from pretrain.layout.work import work_of

RAMP = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py spans`."""
    for name, value, what in (
        ("seq-len", 2048, "tokens of a sample"),
        ("batch", 1, "samples"),
        ("heads", 8, "heads"),
        ("head-dim", 64, "channels of a head"),
        ("rounds", 8, "measured rounds"),
        ("threads", 1, "OpenMP threads"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=value, help=f"{what} (default: %(default)s)")


def run(options: argparse.Namespace) -> Report:
    """Alternate attention over everything and within spans of three lengths."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = options.seq_len
    shape = (length, options.batch, options.heads, options.head_dim)
    draw = torch.Generator(device).manual_seed(0)
    q, k, v, out = (torch.randn(shape, generator=draw, device=device).permute(1, 2, 0, 3) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def within(span: int) -> Callable[[], None]:
        spans = torch.full((options.heads,), float(span), device=device, requires_grad=True)
        seen = Within(RAMP, reach(span, RAMP), options.head_dim**-0.5)
        return lambda: _both(attend_spans(q, k, v, spans, seen, compiled=True), out)

    spans = (RAMP, length // 6, length)
    passes = {0: lambda: _both(F.scaled_dot_product_attention(q, k, v, is_causal=True), out)}
    passes |= {span: within(span) for span in spans}
    seconds: dict[int, list[float]] = {span: [] for span in passes}
    for number in tqdm(range(1 + options.rounds), disable=None, leave=False):
        for span, each in passes.items():
            taken = timed(each, device)
            if number:
                seconds[span].append(taken)
    synchronize(device)
    rows = [_row(span, seconds[0], seconds[span], options) for span in spans]
    settings: dict[str, object] = {
        name: value for name, value in vars(options).items() if isinstance(value, int) and name != "json"
    }
    settings |= {"ramp": RAMP, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    settings |= {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset")}
    notes = [
        "ms: medians, of the CPU time of the process, which does not depend on what else runs; on a GPU, of time.",
        "faster: all / within, the median over rounds of that within a round.",
        "fewer FLOPs: that of what is counted, with all keys of a sample, where a causal kernel computes half of them.",
    ]
    return Report("Attention within spans, single passes alternated", settings, rows, notes)


def _both(made: Tensor, gradient: Tensor) -> None:
    made.backward(gradient)


def _row(span: int, whole: list[float], own: list[float], options: argparse.Namespace) -> dict[str, object]:
    length, heads = options.seq_len, options.heads
    sizes = {"vocab": 1, "hidden": 1, "layers": 1, "ffn": 1, "heads": heads, "kv_heads": heads}
    arch = Architecture("llama2", {**sizes, "head_dim": options.head_dim}, span=Span(length, RAMP))
    keys = keys_of(span, RAMP, length)
    flops, fewer = (work_of(arch, length, seen=[(n, length)])[0].scores for n in (length, keys))
    ratio, low, high = spread([one / other for one, other in zip(whole, own, strict=True)])
    return {
        "span": span,
        "keys": keys,
        "MFLOPs": options.batch * fewer / 1e6,
        "fewer_FLOPs": flops / fewer,
        "all_ms": 1e3 * spread(whole)[0],
        "within_ms": 1e3 * spread(own)[0],
        "faster": ratio,
        "quartiles": f"{low:.2f} .. {high:.2f}",
    }
