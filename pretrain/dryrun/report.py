"""The verdict on a stage as text and as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from growth.describe import table
from pretrain.dryrun.verdict import SHOWN, Rank, Verdict

GIB = 2**30


def text(verdict: Verdict, *, shapes: bool = False) -> str:
    """Tables of memory and of a step, what the largest peak consists of, and all that is wrong."""
    layout = verdict.layout
    head = f"{verdict.stage}: tp {layout.tp}, pp {layout.pp}, dp {layout.dp}"
    if layout.virtual > 1:
        head += f", {layout.virtual} chunks a rank"
    parts = [f"== {head}", _memory(verdict), _steps(verdict)]
    if verdict.ranks:
        parts.append(_parts(max(verdict.ranks, key=lambda rank: rank.top.peak)))
    slow = {f"{f.what}, at {next(iter(f.where), '')}" for r in verdict.ranks for f in r.findings if f.kind == "slow"}
    parts += [f"slow: {words}" for words in sorted(slow)]
    if shapes:
        parts += ["\n".join([f"modules of {rank.name}: given -> made", *rank.shapes]) for rank in verdict.ranks]
    parts += ["\n".join(f"WRONG: {problem}" for problem in verdict.problems) or "passes"]
    return "\n\n".join(parts)


def _memory(verdict: Verdict) -> str:
    names = list(dict.fromkeys(phase.name for rank in verdict.ranks for phase in rank.phases))
    rows = [["peak, GiB", *names, "most", "plan", "off"]]
    for rank in verdict.ranks:
        peaks = {phase.name: phase.peak for phase in rank.phases}
        cells = [f"{peaks[name] / GIB:.3f}" if name in peaks else "-" for name in names]
        rows.append([rank.name, *cells, f"{rank.top.peak / GIB:.3f}", f"{rank.planned / GIB:.3f}", f"{rank.off:+.1%}"])
    return table(rows)


def _steps(verdict: Verdict) -> str:
    rows = [["a step", "micro-batches", "host waits", "kernels", "TFLOP", "GB memory-bound", "GB given to collectives"]]
    for rank in verdict.ranks:
        kernels = rank.kernels.values()
        rows.append(
            [
                rank.name,
                str(rank.micro_batches),
                str(sum(f.count for f in rank.waits)),
                str(sum(kernel["calls"] for kernel in kernels)),
                f"{sum(kernel['flops'] for kernel in kernels) / 1e12:.1f}",
                f"{rank.memory_bound / 1e9:.1f}",
                ", ".join(f"{what} {size / 1e9:.3f}" for what, size in rank.traffic.items() if size >= 1e5) or "-",
            ]
        )
    return table(rows)


def _parts(rank: Rank) -> str:
    parts = sorted(rank.top.parts.items(), key=lambda part: -part[1])
    rest = rank.top.peak - sum(size for _, size in parts[:SHOWN])
    rows = [[f"{rank.name}, {rank.top.name}", "GiB"]]
    rows += [[line, f"{size / GIB:.3f}"] for line, size in parts[:SHOWN]]
    return table([*rows, ["everything else", f"{rest / GIB:.3f}"]])


def data(verdict: Verdict) -> dict[str, Any]:
    """For machines."""
    layout = verdict.layout
    return {
        "stage": verdict.stage,
        "layout": layout.to_json(),
        "problems": list(verdict.problems),
        "ranks": [
            {
                **{key: value for key, value in asdict(rank).items() if key != "plan"},
                "plan": {**asdict(rank.plan), "tensors": rank.planned},
                "peak_bytes": rank.top.peak,
                "memory_bound_bytes": rank.memory_bound,
                "waits": sum(f.count for f in rank.waits),
            }
            for rank in verdict.ranks
        ],
    }
