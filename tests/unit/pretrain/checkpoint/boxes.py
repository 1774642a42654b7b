"""Random tensors, partitions and boxes for the tests of the store."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st

from growth.box import Box
from pretrain.checkpoint import ManifestFields

shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@st.composite
def box_of(draw: st.DrawFn, shape: Sequence[int]) -> Box:
    """Any box of a shape that is not empty."""
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
    ends = [(a, b) if a < b else (a, a + 1) for a, b in ends]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


@st.composite
def partition(draw: st.DrawFn, shape: Sequence[int], ranks: int) -> list[list[Box]]:
    """The boxes of each rank: cut first along one axis (tensor parallel), then each shard by flat ranges (ZeRO)."""
    shards = [Box.whole(shape)]
    if shape:
        axis = draw(st.integers(0, len(shape) - 1))
        cuts = sorted({0, shape[axis], *draw(st.lists(st.integers(0, shape[axis]), max_size=2))})
        shards = []
        for a, b in itertools.pairwise(cuts):
            start, stop = [0] * len(shape), list(shape)
            start[axis], stop[axis] = a, b
            shards.append(Box(tuple(start), tuple(stop)))
    owners: list[list[Box]] = [[] for _ in range(ranks)]
    for shard in shards:
        cuts = sorted({0, shard.numel, *draw(st.lists(st.integers(0, shard.numel), max_size=3))})
        for a, b in itertools.pairwise(cuts):
            owner = owners[draw(st.integers(0, ranks - 1))]
            owner += [box.moved(shard.start) for box in Box.of_flat_range(shard.shape, a, b)]
    return owners


def fields_of(shapes: dict[str, tuple[int, ...]], tokens: int = 0) -> ManifestFields:
    """Fields of a run that is at `tokens`."""
    return ManifestFields(
        architecture={"family": "test", "sizes": {"hidden": 4}, "scalars": {"norm_eps": 1e-5}},
        shapes=shapes,
        stage="small",
        generations={"records": [{"birth_tokens": 0, "birth_step": 0, "adam_step": 3}]},
        cursor={"epoch": 0, "document": 2, "byte": tokens},
        progress={"tokens": tokens, "step": 1, "flops": 1e12, "seconds": 0.1},
        config={"name": "test"},
    )


def state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Random content of all kinds: kind -> name -> tensor."""
    generator = torch.Generator().manual_seed(seed)
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    return {kind: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for kind in kinds}


def entries(
    content: dict[str, dict[str, torch.Tensor]], owned: dict[str, list[Box]] | None = None
) -> dict[str, list[tuple[str, Box, torch.Tensor]]]:
    """What `Checkpointer.save` takes: views of the owned boxes, or of whole tensors."""
    return {
        kind: [
            (name, box, tensor[(*box.slices(), ...)])
            for name, tensor in tensors.items()
            for box in (owned[name] if owned is not None else [Box.whole(tensor.shape)])
        ]
        for kind, tensors in content.items()
    }


def flip(path: Path, byte: int) -> None:
    """Flips one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 4]))
