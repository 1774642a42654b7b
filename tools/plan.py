"""Says what a curriculum will cost before its first GPU hour: parameters, bytes on a GPU, FLOPs, hours, traffic.

Needs no GPU and builds no model. Numbers of parameters, weights, gradients and optimizer state are exact; activations
follow formulas that are tested against real models; MFU, storage and network are assumptions, which the answer names.
Ends with exit code 2 when a stage does not fit its GPUs, and says what would make it fit.

examples:
  python tools/plan.py configs/llama2_55m_to_7b.yaml
  python tools/plan.py configs/llama2_55m_to_7b.yaml --gpu h100-80gb --mfu 0.4
"""

import argparse
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

from growth import Architecture
from growth.describe import table
from pretrain import cli, config
from pretrain.cli import Answer
from pretrain.errors import UserError
from pretrain.estimate import cost
from pretrain.estimate.cost import GPUS, HOST, STORAGE, STORED_BYTES, Cost, Gpu
from pretrain.estimate.flops import PEAK_FLOPS
from pretrain.report.plot import duration, short

PARTS = {"embed": "embedding", "attn": "attention", "mlp": "MLP", "norm": "norms", "lm_head": "head"}
"""Parts of a model by what the names of their tensors contain; the first that fits counts."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the curriculum, a YAML file")
    parser.add_argument("--nodes", type=int, help="nodes of every stage (default: what its dp asks for)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="a100-80gb", help="default: %(default)s")
    parser.add_argument("--mfu", default="auto", help="share of the peak to reckon with, such as 0.45 (default: auto)")


def work(options: argparse.Namespace) -> Answer:
    """Raises UserError when a stage does not fit its GPUs."""
    gpu = GPUS[options.gpu]
    curriculum = config.load(options.config)
    costs = cost.of_curriculum(
        curriculum, gpu=gpu, gpus_per_node=options.gpus_per_node, nodes=options.nodes, mfu=_mfu(options.mfu)
    )
    if problems := [_too_large(c, gpu) for c in costs if c.memory.total > gpu.memory]:
        raise UserError("\n".join(problems))
    text = [_stages(costs), _parameters(costs), _memory(costs, gpu), _traffic(costs), _total(costs)]
    return Answer("\n\n".join([*text, _assumptions(options, gpu)]), _data(costs))


def parameters_by_part(arch: Architecture) -> dict[str, int]:
    """Parameters of a model by part, in the order of PARTS."""
    found = dict.fromkeys(PARTS.values(), 0)
    for name, tensor in arch.tensors().items():
        part = next(part for key, part in PARTS.items() if key in name)
        found[part] += prod(tensor.shape)
    return found


def _stages(costs: Sequence[Cost]) -> str:
    head = ["stage", "parameters", "x", "layers x hidden", "vocab", "TP x PP x DP", "nodes", "batch", "tokens", "FLOPs"]
    rows = [[*head, "MFU", "bubble", "tokens/s", "time", "GPU hours", "growth event"]]
    before = 0
    for c in costs:
        size, train, count = c.arch.sizes, c.stage.train, c.arch.parameters()
        rows.append(
            [
                c.stage.name,
                f"{count:,}",
                f"{count / before:.2f}" if before else "",
                f"{size['layers']} x {size['hidden']}",
                f"{size['vocab']:,}",
                f"{c.layout.tp} x {c.layout.pp} x {c.layout.dp}",
                str(c.nodes),
                short(train.global_batch * train.seq_len),
                short(train.tokens),
                f"{c.flops:.2e}",
                f"{c.mfu:.2f}",
                f"{c.bubble:.1%}" if c.layout.pp > 1 else "-",
                short(c.tokens_per_second),
                duration(c.seconds),
                f"{c.gpu_hours:,.0f}",
                duration(c.event) if c.event else "-",
            ]
        )
        before = count
    return table(rows)


def _parameters(costs: Sequence[Cost]) -> str:
    rows = [["parameters by part", *PARTS.values()]]
    rows += [[c.stage.name, *(f"{n:,}" for n in parameters_by_part(c.arch).values())] for c in costs]
    return table(rows)


def _memory(costs: Sequence[Cost], gpu: Gpu) -> str:
    rows = [["GiB on a GPU", "micro-batch", "recompute", *MEMORY, "total", f"of {gpu.memory / 2**30:.0f}"]]
    for c in costs:
        cells = [f"{getattr(c.memory, part) / 2**30:.1f}" for part in MEMORY]
        train, total = c.stage.train, c.memory.total
        share = f"{total / gpu.memory:.0%}"
        batch = f"{train.micro_batch} x {train.seq_len:,}"
        rows.append([c.stage.name, batch, train.recompute, *cells, f"{total / 2**30:.1f}", share])
    return table(rows)


MEMORY = ("weights", "gradients", "optimizer", "activations", "workspace", "buffers", "allowance")


def _traffic(costs: Sequence[Cost]) -> str:
    rows = [["per step and save", "GB over NVLink", "GB over the network", "checkpoint GB", "stall of a save"]]
    for c in costs:
        stored = f"{STORED_BYTES * c.arch.parameters() / 1e9:.1f}"
        rows.append([c.stage.name, f"{c.nvlink / 1e9:.1f}", f"{c.network / 1e9:.1f}", stored, duration(c.stall)])
    return table(rows)


def _total(costs: Sequence[Cost]) -> str:
    flops, hours = cost.from_scratch(list(costs))
    mine, gpu_hours = sum(c.flops for c in costs), sum(c.gpu_hours for c in costs)
    tokens = sum(c.stage.train.tokens for c in costs)
    return (
        f"In all {short(tokens)} tokens, {mine:.2e} FLOPs, {gpu_hours:,.0f} GPU hours, "
        f"{duration(sum(c.seconds for c in costs))} one after the other.\n"
        f"{costs[-1].stage.name} from scratch on the same tokens: {flops:.2e} FLOPs, {hours:,.0f} GPU hours; "
        f"growing takes {mine / flops:.0%} of the FLOPs and {gpu_hours / hours:.0%} of the GPU hours."
    )


def _assumptions(options: argparse.Namespace, gpu: Gpu) -> str:
    peak = PEAK_FLOPS[gpu.name]["bf16"]
    mfu = "MFU as given"
    if options.mfu == "auto":
        mfu = "MFU by the width of a rank's matrices (pretrain/estimate/cost.py; measure yours and give it with --mfu)"
    return (
        f"Assumed: {gpu.name}, {peak / 1e12:.0f} dense bf16 TFLOP/s; {mfu}; "
        f"{STORAGE / 1e9:.0f} GB/s between a node and storage, {HOST / 1e9:.0f} GB/s between a GPU and its host.\n"
        "Tokens are of each stage's own vocabulary. Time is without queues, restarts and validations."
    )


def _too_large(c: Cost, gpu: Gpu) -> str:
    found = cost.remedies(c, gpu)
    advice = "; ".join(found) if found else "no single change of its layout does: use more GPUs for a replica (tp, pp)"
    return (
        f"stage {c.stage.name!r} needs {c.memory.total / 2**30:.0f} GiB on a GPU of {gpu.memory / 2**30:.0f}; it would "
        f"fit with {advice}"
    )


def _data(costs: Sequence[Cost]) -> dict[str, Any]:
    flops, hours = cost.from_scratch(list(costs))
    stages = [
        {
            "stage": c.stage.name,
            "parameters": c.arch.parameters(),
            "parts": parameters_by_part(c.arch),
            "layout": {"tp": c.layout.tp, "pp": c.layout.pp, "dp": c.layout.dp, "pipeline": list(c.layout.pipeline)},
            "nodes": c.nodes,
            "tokens": c.stage.train.tokens,
            "flops": c.flops,
            "mfu": c.mfu,
            "bubble": c.bubble,
            "tokens_per_second": c.tokens_per_second,
            "seconds": c.seconds,
            "gpu_hours": c.gpu_hours,
            "event_seconds": c.event,
            "checkpoint_bytes": STORED_BYTES * c.arch.parameters(),
            "stall_seconds": c.stall,
            "nvlink_bytes_per_step": c.nvlink,
            "network_bytes_per_step": c.network,
            "memory_bytes": {**{part: getattr(c.memory, part) for part in MEMORY}, "total": c.memory.total},
        }
        for c in costs
    ]
    return {"stages": stages, "from_scratch": {"flops": flops, "gpu_hours": hours}}


def _mfu(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UserError(f"--mfu {text}: give a share of the peak between 0 and 1, such as 0.45, or auto")
    return value


def main(given: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    return cli.run(__doc__ or "", arguments, work, given)


if __name__ == "__main__":
    sys.exit(main())
