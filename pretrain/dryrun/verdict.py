"""What a dry run of a stage says of it: the figures of every rank, beside the plan's, and all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.config import Curriculum, Stage
from pretrain.dryrun import compare
from pretrain.dryrun.findings import Finding
from pretrain.dryrun.memory import Phase
from pretrain.dryrun.ranks import named
from pretrain.estimate import memory
from pretrain.estimate.teaching import taught
from pretrain.layout import Layout

STEP = "step"
"""The pass in which the host may wait nowhere but where `ALLOWED` says: a step that is not the first of an engine."""
ALLOWED: Mapping[str, str] = {
    "pretrain/engine/exchange.py exchange": "for the loss, the norm and the wish to stop, once a step",
    "pretrain/engine/spans.py Spans.refresh": "for how far heads see, by which the next step is computed",
}
"""Where the host may wait for the device in a step, by file and function, and what for."""
TOLERANCE = 0.05
"""By how much the plan may be off, of the peak that was measured."""
SHOWN = 12
"""Lines of the parts of a peak."""


@dataclass(frozen=True)
class Rank:
    """One rank. peak and plan are bytes of tensors: without the context, NCCL, cuBLAS and fragmentation."""

    number: int
    name: str
    phases: tuple[Phase, ...]
    plan: memory.Memory
    findings: tuple[Finding, ...]
    micro_batches: int
    kernels: Mapping[str, Mapping[str, int]]
    traffic: Mapping[str, int]
    shapes: tuple[str, ...]

    @property
    def top(self) -> Phase:
        """The pass that needs most."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def planned(self) -> int:
        return self.plan.total - self.plan.allowance

    @property
    def off(self) -> float:
        """By how much the plan is too high, of what was measured."""
        return self.planned / self.top.peak - 1 if self.top.peak else 0.0

    @property
    def waits(self) -> list[Finding]:
        """Of one step, everything for which the host waits."""
        return [f for f in self.findings if f.kind == "wait" and f.phase == STEP]

    @property
    def memory_bound(self) -> int:
        """Bytes that the kernels of a step move which multiply no matrices."""
        return sum(kernel["bytes"] for kernel in self.kernels.values() if not kernel["flops"])


@dataclass(frozen=True)
class Verdict:
    """Of one stage. problems: what is wrong, in words; empty: it passes."""

    stage: str
    layout: Layout
    ranks: tuple[Rank, ...]
    problems: tuple[str, ...]


def of(
    curriculum: Curriculum, stage: Stage, layout: Layout, answers: Sequence[Mapping[str, Any]], room: int
) -> Verdict:
    """answers: of the ranks that were run, see `serve.answer`; room: bytes that a process can have on the GPU."""
    ranks = tuple(_rank(curriculum, stage, layout, answer) for answer in answers)
    calls = {answer["rank"]: answer["calls"] for answer in answers}
    problems = [*_found(ranks), *(words for rank in ranks for words in _sizes(rank, room))]
    if not any(f.kind == "error" for rank in ranks for f in rank.findings):  # a rank that stopped meets nobody
        problems += compare.problems(calls, layout)
    return Verdict(stage.name, layout, ranks, tuple(problems))


def _rank(curriculum: Curriculum, stage: Stage, layout: Layout, answer: Mapping[str, Any]) -> Rank:
    arch = stage.grown()
    pp_rank, _, _ = layout.coordinates(answer["rank"])
    end = layout.resized(arch, stage.train.seq_len) if stage.patches else layout
    return Rank(
        number=answer["rank"],
        name=named(layout, answer["rank"]),
        phases=tuple(Phase(**phase) for phase in answer["phases"]),
        plan=memory.of_rank(
            arch,
            end,
            stage.train,
            pp_rank,
            before=memory.growing(stage, curriculum.parent(stage)),
            taught=taught(curriculum, stage),
        ),
        findings=tuple(Finding(**{**finding, "where": tuple(finding["where"])}) for finding in answer["findings"]),
        micro_batches=answer["micro_batches"],
        kernels=answer["kernels"],
        traffic=answer["traffic"],
        shapes=tuple(answer["shapes"]),
    )


def _found(ranks: Sequence[Rank]) -> Iterator[str]:
    """Errors, and waits in a step that are not allowed: once each, with the ranks on which they are."""
    where: dict[tuple[str, str, tuple[str, ...]], list[tuple[Rank, Finding]]] = {}
    for rank in ranks:
        for f in rank.findings:
            if f.kind == "error" or (f.kind == "wait" and f.phase == STEP and not _allowed(f)):
                where.setdefault((f.kind, f.what, f.where), []).append((rank, f))
    for (kind, _, _), group in where.items():
        names = list(dict.fromkeys(rank.name for rank, _ in group))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {'the host waits in a step: ' if kind == 'wait' else ''}{group[0][1]}"


def _sizes(rank: Rank, room: int) -> Iterator[str]:
    """A peak that does not fit, or that the plan does not know; of a rank that has come to its end."""
    if any(f.kind == "error" for f in rank.findings):
        return
    top, gib = rank.top, 2**30
    if (needed := top.peak + rank.plan.allowance) > room:
        yield f"{rank.name}: needs {needed / gib:.1f} GiB of {room / gib:.1f} in {top.name}"
    if abs(rank.off) > TOLERANCE:
        yield (
            f"{rank.name}: the plan says {rank.planned / gib:.3f} GiB of tensors, and {top.name} has "
            f"{top.peak / gib:.3f} ({rank.off:+.1%})"
        )


def _allowed(finding: Finding) -> bool:
    file, _, rest = next(iter(finding.where), "").partition(":")
    return f"{file} {rest.partition(' ')[2]}" in ALLOWED
