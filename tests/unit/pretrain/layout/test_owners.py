"""What a rank owns: with every layout, each element of every tensor has one writer, where ZeRO has it."""

from __future__ import annotations

import itertools
import re
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from growth import Architecture, Box
from pretrain.checkpoint.places import check_tiling
from pretrain.families.parameters import parameters
from pretrain.layout import zero
from pretrain.layout.cuts import Parameter
from pretrain.layout.layout import Layout
from pretrain.layout.zero import Fragment, fragment_boxes, fragments

BIASED = {"vocab": 13, "positions": 6, "hidden": 4, "layers": 3, "heads": 12, "head_dim": 2, "ffn": 12}
ARCHITECTURES = [
    Architecture(
        "llama2", {"vocab": 13, "hidden": 4, "layers": 3, "heads": 12, "kv_heads": 12, "head_dim": 2, "ffn": 12}
    ),
    Architecture("gpt2", BIASED),
    Architecture("bert", {**BIASED, "types": 2, "labels": 2}),
]
SHARED = [arch.replace(kinds=("mlp", "layer", "attention"), calls=(0, 1, 0, 1, 2)) for arch in ARCHITECTURES]


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *SHARED], ids=lambda arch: arch.family)
@pytest.mark.parametrize(("tp", "pp", "dp"), itertools.product([1, 2, 3], [1, 2, 3], [1, 2]))
def test_every_element_has_one_writer(arch: Architecture, tp: int, pp: int, dp: int) -> None:
    """Also of what several ranks hold: norms, biases of rows, layers that several pipeline ranks call, and the
    head's copy of a tied embedding."""
    written: dict[str, list[Box]] = {name: [] for name in arch.tensors()}
    layout = Layout.make(arch.depth, tp=tp, pp=pp, dp=dp)
    for rank in range(layout.world):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(arch, layout, pp_rank, tp_rank)
        for fragment in fragments(table, dp, dp_rank):
            if table[fragment.index].owner:
                for found in fragment_boxes(table[fragment.index], fragment.start, fragment.numel):
                    written[found.tensor].append(found.box)
    for name, tensor in arch.tensors().items():
        check_tiling(name, tensor.shape, written[name])


@pytest.mark.parametrize("module", ["zero/stage_1_and_2.py", "bf16_optimizer.py"])
def test_the_alignment_is_that_of_deepspeed(module: str) -> None:
    spec = find_spec("deepspeed")  # which takes seconds to import
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "runtime" / module).read_text()
    found = re.findall(r"self\.nccl_start_alignment_factor = (\d+)", source)
    assert found
    assert set(map(int, found)) == {zero.ALIGNMENT}


@pytest.mark.parametrize(
    ("sizes", "dp", "partition"),
    [((5,), 1, 6), ((5,), 2, 4), ((3, 2), 2, 4), ((7,), 3, 4), ((13,), 3, 6), ((12,), 3, 4), ((8,), 2, 4)],
)
def test_partitions_are_padded_to_the_alignment(sizes: tuple[int, ...], dp: int, partition: int) -> None:
    """2 x DP elements: worked out by hand. The partition says where a rank's range begins, not only how long it is."""
    table = [Parameter(str(n), (size,), (), None, True) for n, size in enumerate(sizes)]
    held: list[int] = []
    for dp_rank in range(dp):
        for f in fragments(table, dp, dp_rank):
            start = sum(sizes[: f.index]) + f.start
            assert f.offset == start - dp_rank * partition
            assert 0 <= f.offset <= f.offset + f.numel <= partition
            held += range(start, start + f.numel)
    assert held == list(range(sum(sizes)))
    assert fragments(table, dp, 0)[0] == Fragment(0, 0, min(partition, prod([sizes[0]])), 0)
