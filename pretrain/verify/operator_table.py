"""The table of operators in growth/README.md, measured.

`python -m pretrain.verify.operator_table growth/README.md` rewrites it.

Every operator grows a small model that was trained for a moment, in double precision; the certificate of each event is
one row.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growth.architecture import Architecture
from growth.between import between
from growth.box import Box
from growth.certificate import Certificate
from growth.evaluate.box_values import Read
from growth.operators import OPERATORS, default
from growth.plan import initial
from pretrain.families import FAMILIES
from pretrain.families.reference import loss
from pretrain.verify.probe import certify

BEGIN, END = (
    "<!-- table of operators: python -m pretrain.verify.operator_table growth/README.md -->",
    "<!-- end of the table -->",
)
_STD, _EXACT = 0.1, 1e-10
_SIZES = {
    "vocab": 24,
    "positions": 32,
    "hidden": 12,
    "layers": 2,
    "kv_heads": 2,
    "head_dim": 6,
    "ffn": 16,
    "sinusoid": 8,
}


@dataclass(frozen=True)
class Case:
    """One row: an operator with options, and what it grows to (by default twice the size), in the families that have
    the axes, scalars and norms of heads that it needs, and none that it lacks. calls: the layers that the blocks of the
    model before call, where they share some."""

    key: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    calls: tuple[int, ...] = ()

    @property
    def families(self) -> list[str]:
        """On which it is measured: those whose layers are alike, and no variants."""
        own = {n: family.table for n, family in FAMILIES.items() if not family.variant_of and not family.table.streams}
        has = {name: {*t.axes, *t.scalars, *(["head_norms"] if t.head_norms else [])} for name, t in own.items()}
        return [f for f, names in has.items() if names >= set(self.needs) and names.isdisjoint(self.lacks)]

    @property
    def label(self) -> str:
        shown = {k: v for k, v in self.options.items() if not isinstance(v, np.ndarray)}
        label = ", ".join(f"{k} {str(v).lower()}".replace("none", "null") for k, v in shown.items())
        return label or ", ".join(f"to {axis} {size}" for axis, size in self.sizes.items())


def _matrix(new: int, old: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=new)).standard_normal((new, old)) / old**0.5


_COPY = {"snr_db": None}
_DENSE = {"write": _matrix(24, 12), "read": _matrix(24, 12)}
_GROUPS = {"heads": 8, "kv_heads": 4}
CASES = (
    Case("layers", "identity"),
    Case("layers", "stack"),
    Case("layers", "stack", {"init": "zero"}),
    Case("layers", "stack", {"noise": 0.1}),
    Case("layers", "interleave"),
    Case("layers", "interleave", {"init": "zero"}),
    Case("layers", "middle"),
    Case("layers", "average"),
    Case("layers", "average", {"init": "zero"}),
    Case("layers", "insert", {"at": [0, 3]}),
    Case("layers", "insert", {"at": [0, 3], "init": "copy"}),
    Case("layers", "insert", {"at": [0, 3], "init": "random"}),
    Case("layers", "untie", {}, {"layers": 4}, ("rope_theta",), calls=(0, 0, 1, 1)),
    Case("layers", "dense", {"weights": np.kron(np.ones((2, 1)), np.eye(2)) * 0.9 + 0.05}),
    Case("layers", "drop", {}, {"layers": 1}),
    Case("hidden", "zero"),
    Case("hidden", "zero", {"keep_eps": True}),
    Case("hidden", "replicate"),
    Case("hidden", "replicate", _COPY),
    Case("hidden", "replicate", {"snr_db": None, "split": 0.25}),
    Case("hidden", "replicate", {"snr_db": None, "born": True}),
    Case("hidden", "net2net", {}, {"hidden": 18}),
    Case("hidden", "net2net", {"mapping": "random"}),
    Case("hidden", "aki"),
    Case("hidden", "dense", _DENSE),
    Case("heads", "zero"),
    Case("heads", "zero", {}, {"heads": 4, "kv_heads": 4}, ("kv_heads",)),
    Case("heads", "replicate"),
    Case("heads", "replicate", _COPY),
    Case("heads", "net2net", {"mapping": "random"}),
    Case("heads", "aki"),
    Case("heads", "dense", dict.fromkeys(("query", "key", "value", "read"), _matrix(4, 2)), {}, (), ("kv_heads",)),
    Case("head_dim", "rotary", {}, {}, ("rope_theta",)),
    Case("head_dim", "rotary_table", {}, {"head_dim": 8}, ("rope_theta",), ("head_norms",)),
    Case("head_dim", "rotary_table", {}, {"head_dim": 12}, ("head_norms",)),
    Case("head_dim", "zero", {}, {"head_dim": 8}, (), ("rope_theta",)),
    Case("ffn", "zero"),
    Case("ffn", "zero_gate_and_down"),
    Case("ffn", "replicate"),
    Case("ffn", "replicate", _COPY),
    Case("ffn", "net2net", {"mapping": "random"}, {"ffn": 24}),
    Case("ffn", "aki"),
    Case("ffn", "dense", {"write": _matrix(32, 16), "read": _matrix(32, 16)}),
    Case("vocab", "random"),
    Case("vocab", "zero"),
    Case("vocab", "mean"),
    Case("vocab", "pieces"),
    Case("vocab", "drop", {}, {"vocab": 16}),
    Case("positions", "random", {}, {}, ("positions",)),
)


def _text(vocab: int, rows: int, seed: int) -> torch.Tensor:
    """Token ids [rows, 32] with something to learn: each follows from the one before, up to a little noise."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    ids = draw.integers(0, vocab, (rows, 32))
    for t in range(1, 32):
        ids[:, t] = np.where(draw.random(rows) < 0.8, (5 * ids[:, t - 1] + 3) % vocab, ids[:, t])
    return torch.from_numpy(ids)


def _architecture(name: str, calls: tuple[int, ...] = ()) -> Architecture:
    """A small one of a family."""
    table = FAMILIES[name].table
    sizes = {**_SIZES, "heads": 4 if "kv_heads" in table.axes else 2, **table.fixed}
    return Architecture(name, {axis: sizes[axis] for axis in ("layers", *table.axes)}, calls=calls)


@cache
def model(family: str, calls: tuple[int, ...]) -> tuple[Architecture, Read]:
    """A small model of a family after 100 steps of training."""
    arch = _architecture(family, calls)
    plan = initial(arch, 0, _STD)

    def nothing(kind: str, name: str, box: Box) -> torch.Tensor:
        raise LookupError(name)

    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), nothing, dtype=torch.float64).requires_grad_()
        for name, t in arch.tensors().items()
    }

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return weights[name][box.slices()]

    optimizer = torch.optim.Adam(list(weights.values()), lr=1e-2)
    for step in range(100):
        optimizer.zero_grad()
        loss(read, arch, _text(arch.sizes["vocab"], 4, step), torch.float64).backward()
        optimizer.step()
    for w in weights.values():
        w.requires_grad_(False)
    return arch, read


def measure(case: Case, family: str) -> Certificate:
    """The certificate of one operator on one family."""
    old, read = model(family, case.calls)
    sizes = dict(case.sizes)
    if not sizes:
        sizes = {case.key: 2 * old.sizes[case.key]}
        if case.key == "heads" and "kv_heads" in old.sizes:
            sizes = dict(_GROUPS)
    policy = {case.key: {"operator": case.name, **case.options}}
    vocab = sizes.get("vocab", 0)
    pieces = [[i % old.sizes["vocab"], (7 * i) % old.sizes["vocab"]] for i in range(vocab - old.sizes["vocab"])]
    plan = between(old, old.replace(sizes, calls=()), policy, seed=0, init_std=_STD, pieces=pieces)
    ids = _text(min(old.sizes["vocab"], plan.new.sizes["vocab"]), 4, 1000)
    train = _text(plan.new.sizes["vocab"], 8, 1001)
    return certify(plan, read, ids, lr=1e-3, train_ids_BS=train, dtype=torch.float64, tolerance=_EXACT)


def table() -> str:
    """The table in Markdown."""
    errors = [f"error {f}" for f in CASES[0].families]
    head = ["axis", "operator", "options", "claims", *errors, "dead", "locked", "what it does"]
    lines = [head, ["---"] * len(head), *map(row, CASES)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(case: Case) -> list[str]:
    """The cells of one row."""
    found = {f: measure(case, f) for f in case.families}
    claims = [f for f, c in found.items() if c.claims]
    errors = [_error(found.get(f)) for f in CASES[0].families]
    dead = max(c.dead_share for c in found.values())
    locked = [later for c in found.values() for _, later in c.locked.values()]
    named = f"{case.name}{' (default)' if not case.label and _is_default(case) else ''}"
    cells = [case.key, named, case.label, "all" if len(claims) == len(found) else ", ".join(claims) or "no"]
    return [*cells, *errors, f"{dead:.2g}", f"{max(locked):.2g}" if locked else "", _what(case)]


def _error(certificate: Certificate | None) -> str:
    if certificate is None:
        return ""
    return "exact" if certificate.preserved else f"{certificate.error:.1g}"


def _is_default(case: Case) -> bool:
    return any(default(arch, arch, case.key) == case.name for arch in map(_architecture, case.families))


def _what(case: Case) -> str:
    """The first words of the operator's docstring."""
    text = (OPERATORS[case.key][case.name].make.__doc__ or "").strip().split("\n\n")[0]
    return re.split(r"[.:;(]", " ".join(text.split()))[0].strip()


def main() -> None:
    """Print the table, or write it between the marks of the file that is named."""
    if len(sys.argv) < 2:
        print(table())
        return
    path = Path(sys.argv[1])
    text = path.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
