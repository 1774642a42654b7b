"""Plans and their maps in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from growth.adapters import RANK
from growth.architecture import Architecture, in_words
from growth.family import LAYERS, TensorSpec
from growth.maps import AxisMap, LayerMap
from growth.mup import Factors, Mup
from growth.plan import Plan
from growth.step import Step


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def describe_plan(plan: Plan) -> str:
    """A table: per row of the family's table its old and new shape and how it is made."""
    if plan.old is None:
        head = f"a fresh {plan.new.family} of {plan.new.parameters():,} parameters (seed {plan.seed})"
        shapes = [
            [s.name, _shape(plan.new.sizes, s), f"{s.init}, std {plan.init_std:g}" if s.init == "normal" else s.init]
            for s in plan.new.rows
        ]
        head += f"\nblocks: {blocks}" if (blocks := in_words(plan.new)) else ""
        return head + "\n" + table([["tensor", "shape", "init"], *shapes])
    claim = "preserves the function" if plan.preserves else "does not preserve the function"
    lines = [f"{plan.old.family}: {plan.old.parameters():,} to {plan.new.parameters():,} parameters; {claim}"]
    for n, step in enumerate(plan.steps, 1):
        lines.append(f"step {n} of {len(plan.steps)}: {', '.join(step.operators)}")
        lines += [
            f"  {name}: {step.old.scalars[name]:g} to {value:g}"
            for name, value in step.new.scalars.items()
            if step.old.scalars[name] != value
        ]
        if step.new.rope_frequencies != step.old.rope_frequencies:
            lines.append(f"  rope_frequencies: a table of {len(step.new.rope_frequencies)}")
        if (now := in_words(step.new)) != (before := in_words(step.old)):
            lines.append(f"  blocks: {before or 'the usual ones'} to {now or 'the usual ones'}")
        if step.layers:
            lines.append(f"  layers: {_layers(step.layers)}")
        rows = [["  tensor", "from", "to", "how"]]
        rows += [
            ["  " + s.name, _shape({RANK: 0, **step.old.sizes}, s), _shape(step.new.sizes, s), _how(step, s)]
            for s in step.new.rows
        ]
        lines.append(table(rows))
    return "\n".join(lines)


def describe_mup(mup: Mup, arch: Architecture) -> str:
    """A table: what muP multiplies, by groups of rows of the family's table that have the same factors."""
    groups: dict[Factors, list[str]] = {}
    for row in arch.rows:
        name = row.name.removesuffix(".weight").rpartition("{layer}.")[2]
        groups.setdefault(mup.factors(arch, row), []).append(name)
    head = ["init x", "rate x", "epsilon x", "decay x", "of"]
    rows = [[*(f"{x:.4g}" for x in (f.init, f.rate, f.eps, f.decay)), ", ".join(names)] for f, names in groups.items()]
    base = ", ".join(f"{key} {value}" for key, value in mup.to_json().items() if value)
    return f"muP, where the base model has {base}\n{table([head, *rows])}"


def _shape(sizes: object, spec: TensorSpec) -> str:
    return "x".join(str(d.size(sizes)) for d in spec.dims)  # type: ignore[arg-type]


def _layers(m: LayerMap) -> str:
    parts = []
    for i in range(m.new):
        pairs = [(s, c) for s, c in zip(m.source[i], m.coefficient[i], strict=True) if s >= 0]
        made = "+".join(str(s) if c == 1 else f"{c:g}*{s}" for s, c in pairs)
        parts.append((made or "fresh") + (" zero branch" if m.zero_branch[i] else "") + ("*" if m.born[i] else ""))
    return f"{', '.join(parts)} (* new)"


def _how(step: Step, spec: TensorSpec) -> str:
    parts = []
    for d, dim in enumerate(spec.dims):
        for axis in dim.axes:
            if axis in step.axes:
                parts.append(f"dim {d} {axis}: {_axis(step.axes[axis], dim.role, spec)}")
    if step.layers and step.layers.zero_branch.any() and spec.branch:
        parts.append(f"{LAYERS}: zero where the branch is")
    adapters = step.old.adapters
    if adapters and not step.new.adapters and adapters.adapts(spec):
        parts.append(f"old + {adapters.scale:g} * lora_B lora_A, of rank {adapters.rank}")
    return "; ".join(parts) or "copied"


def _axis(m: AxisMap, role: str, spec: TensorSpec) -> str:
    made = m.source[:, 0] >= 0
    parts = []
    for which, word in ((made & ~m.born, "old"), (made & m.born, "new from old")):
        if which.any():
            factors = np.unique(m.factor(role, "weight")[which][m.source[which] >= 0])
            text = f"{int(which.sum())} {word}"
            if (factors != 1.0).any():
                shown = factors if len(factors) < 4 else factors[[0, -1]]
                text += " x " + (", " if len(factors) < 4 else "..").join(f"{f:.6g}" for f in shown)
            parts.append(text)
    if not made.all():
        mixed = ~made & (m.mix >= 0) if m.mixes_of(role) is not None else np.zeros_like(made)
        fresh = ~made & ~mixed
        if mixed.any():
            parts.append(f"{int(mixed.sum())} linear combinations")
        if fresh.any():
            parts.append(f"{int(fresh.sum())} new {'zero' if m.starts_at_zero(role) else spec.init}")
    noise = f", relative noise {m.noise:g}" if m.noise and role == "read" else ""
    return " + ".join(parts) + noise
