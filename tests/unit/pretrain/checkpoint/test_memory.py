"""The bounds on memory and on bytes read, on checkpoints that would not fit into them."""

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from growth import Architecture, Box, between
from pretrain.checkpoint import KINDS, Checkpointer, ManifestFields, Reader, write_checkpoint
from pretrain.checkpoint.blocks import BLOCK
from pretrain.dryrun.sparse import sparse_checkpoint
from pretrain.engine.shards import fill
from pretrain.families.parameters import parameters
from pretrain.layout import Layout, fragment_boxes, fragments
from tests.unit.pretrain.checkpoint.boxes import fields_of
from tests.unit.pretrain.checkpoint.ranks import run_ranks

SHAPES = {"a": (8000, 3000), "b": (3000, 4000), "c": (100,)}  # 137 MiB a kind


def _kib(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def peak(work: Callable[[], Any]) -> tuple[float, Any]:
    """By how many MiB the memory of this process rose at most while it worked, and the result.

    Resident memory without the pages of program files, which come into a forked process as they are used.
    """
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, code = _kib("VmRSS"), _kib("RssFile")
    result = work()
    return (_kib("VmHWM") - before - (_kib("RssFile") - code)) / 1024, result


def _write(rank: int, folder: Path) -> float:
    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return torch.zeros(box.shape)

    return peak(lambda: write_checkpoint(folder / "new", 0, ["weight"], read, fields_of(SHAPES), {}))[0]


def test_an_offline_write_needs_little_memory(tmp_path: Path) -> None:
    assert run_ranks(1, _write, tmp_path / "store", tmp_path)[0] < 64  # and 137 MiB are written


def _save(rank: int, folder: Path) -> float:
    whole = torch.zeros(8000, 3000)  # a save holds no copy, not even of strided views
    columns = [Box((0, 0), (8000, 1000)), Box((0, 1000), (8000, 3000))]
    whole.fill_(1.0)
    entries = {"weight": [("a", box, whole[box.slices()]) for box in columns]}
    with Checkpointer(folder / "c") as checkpointer:
        return peak(lambda: checkpointer.save(0, entries, fields_of({"a": (8000, 3000)})))[0]


def test_a_save_needs_little_memory(tmp_path: Path) -> None:
    assert run_ranks(1, _save, tmp_path / "store", tmp_path)[0] < 64  # and 92 MiB are written


def _read_an_eighth(rank: int, folder: Path) -> tuple[float, int]:
    with Reader(folder) as reader:

        def read() -> int:
            for kind in KINDS:
                for name, shape in SHAPES.items():
                    rows = shape[0] // 8
                    reader.read(kind, name, Box((3 * rows, *(0 for _ in shape[1:])), (4 * rows, *shape[1:])))
            return reader.bytes_read

        return peak(read)


def test_an_eighth_of_the_rows_is_an_eighth_of_the_bytes(tmp_path: Path) -> None:
    manifest = sparse_checkpoint(tmp_path / "c", fields_of(SHAPES))
    rise, read = run_ranks(1, _read_an_eighth, tmp_path / "store", tmp_path / "c")[0]
    assert read <= manifest.size / 8 + BLOCK * len(KINDS) * len(SHAPES)
    assert rise < 64  # the blocks kept, one eighth of a tensor, and what the allocator does not give back


OLD = Architecture(
    "llama2",
    {"vocab": 32000, "hidden": 3072, "layers": 28, "heads": 24, "kv_heads": 24, "head_dim": 128, "ffn": 8192},
)
NEW = OLD.replace({"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "ffn": 11008})


def _fill_rank(rank: int, folder: Path, place: int) -> tuple[float, int, int]:
    """As one rank of the 7B stage: MiB by which memory rose over its shard, bytes read, bytes of blocks touched."""
    layout = Layout(tp=4, pp=4, dp=2, pipeline=(8, 8, 8, 8))
    pp_rank, dp_rank, tp_rank = layout.coordinates(place)
    plan = between(OLD, NEW, seed=1, init_std=0.02)
    table = parameters(NEW, layout, pp_rank, tp_rank)
    owned = []
    for f in fragments(table, layout.dp, dp_rank):
        values = {kind: torch.full((f.numel,), 7.0) for kind in KINDS}
        owned.append(SimpleNamespace(boxes=fragment_boxes(table[f.index], f.start, f.numel), **values))
    with Reader(folder) as reader:
        rise, _ = peak(lambda: fill(SimpleNamespace(owned=owned), plan, reader))  # type: ignore[arg-type]
        # A new layer may be made of an old one that another new layer is made of too: blocks count per box.
        touched = sum(
            len(_touched(stored.offset, stored.box.shape, old))
            for kind in KINDS
            for part in owned
            for box in part.boxes
            for name, old in plan.reads(box.tensor, box.box, kind)
            for stored in reader.manifest.tensors[name].boxes[kind]
        )
    return rise, reader.bytes_read, touched * BLOCK


def _touched(offset: int, shape: tuple[int, ...], box: Box) -> set[int]:
    inner = prod(shape[1:])
    first, last = (box.start[1], box.stop[1]) if len(shape) > 1 else (0, 1)
    starts = offset + 4 * (torch.arange(box.start[0], box.stop[0]) * inner + first)
    stops = offset + 4 * (torch.arange(box.start[0], box.stop[0]) * inner + last)
    return {
        block
        for a, b in zip((starts // BLOCK).tolist(), ((stops - 1) // BLOCK).tolist(), strict=True)
        for block in range(a, b + 1)
    }


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("place", [0, 13, 31])
def test_a_rank_of_7b_grows_out_of_3b_in_its_shard_and_256_mib(tmp_path: Path, place: int) -> None:
    shapes = {name: tensor.shape for name, tensor in OLD.tensors().items()}
    fields = ManifestFields(architecture=OLD.to_json(), shapes=shapes, stage="3b")
    manifest = sparse_checkpoint(tmp_path / "c", fields)
    assert manifest.size > 3 * 4 * 3.3e9
    ((rise, read, touched),) = run_ranks(1, _fill_rank, tmp_path / "store", tmp_path / "c", place)
    print(f"{rise:.0f} MiB over the shard, {read / 1e6:.0f} MB read of {touched / 1e6:.0f} MB in touched blocks")
    assert rise < 256
    assert read <= touched
