"""Small models to grow: hypothesis strategies for architectures, and readers for plans."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from growth import Architecture, Box, Plan, initial
from growth.evaluate.box_values import Read

STD = 0.3  # large enough that nothing is linear, small enough for softmax
SMALL = Architecture(
    "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
)


@st.composite
def llama2(draw: st.DrawFn, max_layers: int = 3) -> Architecture:
    groups = draw(st.integers(1, 3))
    sizes = {
        "vocab": draw(st.integers(7, 23)),
        "hidden": draw(st.integers(3, 20)),
        "layers": draw(st.integers(0, max_layers)),
        "heads": groups * draw(st.integers(1, 3)),
        "kv_heads": groups,
        "head_dim": 2 * draw(st.integers(1, 3)),
        "ffn": draw(st.integers(1, 17)),
    }
    return Architecture("llama2", sizes, {"norm_eps": draw(st.sampled_from([1e-6, 1e-2]))})


@st.composite
def grown_llama2(draw: st.DrawFn, old: Architecture) -> Architecture:
    """Sizes that default policies reach from `old`; any axis may stay."""
    s = old.sizes
    groups, per = s["kv_heads"], s["heads"] // s["kv_heads"]
    parts = draw(st.sampled_from([p for p in range(1, per + 1) if per % p == 0]))
    new_groups = groups * parts + draw(st.integers(0, 2))
    new_per = per // parts if parts > 1 else per + draw(st.integers(0, 2))
    return old.replace(
        {
            "vocab": s["vocab"] + draw(st.integers(0, 9)),
            "hidden": s["hidden"] + draw(st.integers(0, 15)),
            "layers": s["layers"] + draw(st.integers(0, 4)),
            "heads": new_groups * new_per,
            "kv_heads": new_groups,
            "ffn": s["ffn"] + draw(st.integers(0, 12)),
        }
    )


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


def whole(plan: Plan, name: str, read: Read, kind: str = "weight", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return plan.evaluate(name, Box.whole(plan.new.tensor(name).shape), read, kind, dtype)


def reader(plan: Plan, read: Read | None = None, dtype: torch.dtype = torch.float64) -> Read:
    """Read from what a plan makes; without a parent nothing is read."""

    def nothing(kind: str, name: str, box: Box) -> torch.Tensor:
        raise AssertionError(f"a fresh model reads {name}")

    return lambda kind, name, box: plan.evaluate(name, box, read or nothing, kind, dtype)


def trained(arch: Architecture, seed: int = 0, dtype: torch.dtype = torch.float64) -> Read:
    """A model whose every parameter and moment is a random number, gains and biases too."""
    store: dict[tuple[str, str], torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in arch.tensors().items():
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            value = torch.randn(tensor.shape, generator=generator, dtype=dtype) * STD
            if kind == "exp_avg_sq":
                value = value.square()
            elif kind == "weight" and tensor.spec.init == "one":
                value = 1.0 + value
            store[kind, name] = value
    return lambda kind, name, box: store[kind, name][box.slices()]


def fresh(arch: Architecture, seed: int = 0) -> Read:
    return reader(initial(arch, seed, STD))


def tokens(vocab: int, rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(1))
