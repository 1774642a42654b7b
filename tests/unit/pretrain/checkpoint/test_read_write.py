import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from growth.box import Box
from pretrain.checkpoint import KINDS, Manifest, Reader, Writer
from pretrain.checkpoint.blocks import BLOCK
from pretrain.checkpoint.manifest import MANIFEST
from tests.unit.pretrain.checkpoint.boxes import box_of, entries, fields_of, partition, shapes, state


def write(folder: Path, content: dict, owned: list[dict[str, list[Box]]] | None = None) -> Manifest:
    """A checkpoint, written as `len(owned)` ranks."""
    folder.mkdir(parents=True)
    sizes = {name: tuple(t.shape) for name, t in content["weight"].items()}
    records = []
    for rank, boxes in enumerate(owned if owned is not None else [None]):
        writer = Writer(folder, rank)
        records += [writer.write(kind, found, sizes) for kind, found in entries(content, boxes).items()]
    manifest = Manifest.build(1, fields_of(sizes), records)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


@given(st.data(), st.lists(shapes, min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_box_of_any_partition(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, sizes: list[tuple[int, ...]], ranks: int
) -> None:
    named = {f"t{i}": shape for i, shape in enumerate(sizes)}
    content = state(named)
    cut = {name: data.draw(partition(shape, ranks)) for name, shape in named.items()}
    folder = tmp_path_factory.mktemp("any") / "c"
    write(folder, content, [{name: cut[name][rank] for name in named} for rank in range(ranks)])
    with Reader(folder) as reader:
        for kind in KINDS:
            for name, tensor in content[kind].items():
                box = data.draw(box_of(tensor.shape))
                want = tensor[(*box.slices(), ...)]
                assert torch.equal(reader.read(kind, name, box), want)
                place = torch.zeros(tensor.shape)[(*box.slices(), ...)]  # strided
                assert reader.read(kind, name, box, place) is place
                assert torch.equal(place, want)
                assert reader.read(kind, name, box, torch.zeros(box.shape, dtype=torch.float64)).eq(want).all()


def test_large_tensors_over_many_blocks(tmp_path: Path) -> None:
    """Rows shorter and longer than a block, boxes that begin and end inside of blocks."""
    named = {"rows": (1500, 700), "long": (3, 400_000), "deep": (5, 300, 301), "one": ()}
    content = state(named)
    cut = {
        "rows": [[Box((0, 0), (1500, 123))], [Box((0, 123), (1500, 700))]],
        "long": [[Box((0, 0), (3, 399_999))], [Box((0, 399_999), (3, 400_000))]],
        "deep": [[Box((0, 0, 0), (2, 300, 301))], [Box((2, 0, 0), (5, 300, 301))]],
        "one": [[], [Box((), ())]],
    }
    write(tmp_path / "c", content, [{name: cut[name][rank] for name in named} for rank in range(2)])
    boxes = {
        "rows": [
            Box((3, 5), (1400, 699)),
            Box((0, 123), (1500, 700)),
            Box((700, 0), (701, 1)),
            Box((9, 0), (999, 700)),
        ],
        "long": [Box((0, 7), (3, 399_999)), Box((1, 0), (2, 400_000)), Box((0, 399_990), (3, 400_000))],
        "deep": [Box((1, 7, 0), (4, 250, 301)), Box((0, 299, 300), (5, 300, 301)), Box((2, 0, 0), (5, 300, 301))],
        "one": [Box((), ())],
    }
    with Reader(tmp_path / "c") as reader:
        for kind in KINDS:
            for name, tensor in content[kind].items():
                for box in [*boxes[name], Box.whole(tensor.shape)]:
                    assert torch.equal(reader.read(kind, name, box), tensor[(*box.slices(), ...)])


def test_only_touched_blocks_are_read_and_once(tmp_path: Path) -> None:
    named = {"w": (4096, 1024), "v": (8, 16)}  # w: 16 MiB
    content = state(named)
    manifest = write(tmp_path / "c", content)
    with Reader(tmp_path / "c") as reader:
        reader.read("weight", "w", Box((512, 0), (1024, 1024)))
        assert reader.blocks_read <= 3  # 2 MiB, not aligned
        assert reader.bytes_read <= 2 * BLOCK + BLOCK
    with Reader(tmp_path / "c") as reader:
        reader.read("weight", "w", Box((0, 0), (4096, 1)))  # a column touches every block, each once
        reader.read("weight", "w", Box((0, 7), (4096, 9)))
        reader.read("weight", "v", Box((0, 0), (8, 16)))
        assert reader.blocks_read == len(manifest.files["weight-00000.safetensors"].blocks)
        assert reader.bytes_read == manifest.files["weight-00000.safetensors"].size


def test_stock_safetensors_reads_every_file(tmp_path: Path) -> None:
    named = {"a": (4, 6), "b": (5,)}
    content = state(named)
    cut = {"a": [[Box((0, 0), (4, 2))], [Box((0, 2), (4, 6))]], "b": [[Box((0,), (5,))], []]}
    manifest = write(tmp_path / "c", content, [{name: cut[name][rank] for name in named} for rank in range(2)])
    assert sorted(manifest.files) == [f"{kind}-0000{rank}.safetensors" for kind in sorted(KINDS) for rank in range(2)]
    for kind in KINDS:
        with safe_open(tmp_path / "c" / f"{kind}-00000.safetensors", "pt") as file:
            assert set(file.keys()) == {"a[0:4,0:2]", "b"}
            assert torch.equal(file.get_tensor("a[0:4,0:2]"), content[kind]["a"][:, :2])
            assert torch.equal(file.get_tensor("b"), content[kind]["b"])
        with safe_open(tmp_path / "c" / f"{kind}-00001.safetensors", "pt") as file:
            assert torch.equal(file.get_tensor("a[0:4,2:6]"), content[kind]["a"][:, 2:])


def test_a_function_is_asked_for_pieces_in_order(tmp_path: Path) -> None:
    tensor = torch.arange(3_000_000, dtype=torch.float32).reshape(3000, 1000)
    asked: list[Box] = []

    def source(box: Box) -> torch.Tensor:
        asked.append(box)
        return tensor[box.slices()]

    told: list[int] = []
    box = Box((0, 0), (3000, 1000))
    record = Writer(tmp_path, 0).write("weight", [("t", box, source)], {"t": (3000, 1000)}, told.append)
    (tmp_path / MANIFEST).write_bytes(Manifest.build(1, fields_of({"t": (3000, 1000)}), [record]).to_bytes())
    assert torch.equal(Reader(tmp_path).read("weight", "t", box), tensor)
    assert len(asked) > 2
    assert sum(told) == 4 * tensor.numel()


def test_what_a_writer_refuses(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    whole = Box.whole((2, 2))
    with pytest.raises(ValueError, match="float64"):
        writer.write("weight", [("t", whole, torch.zeros(2, 2, dtype=torch.float64))], {"t": (2, 2)})
    with pytest.raises(ValueError, match=r"\(4,\)"):
        writer.write("exp_avg", [("t", whole, torch.zeros(4))], {"t": (2, 2)})
    with pytest.raises(ValueError, match="twice"):
        writer.write("exp_avg_sq", [("t", whole, torch.zeros(2, 2))] * 2, {"t": (2, 2)})
    with pytest.raises(ValueError, match="kind"):
        writer.write("momentum", [], {})


def test_what_a_reader_refuses(tmp_path: Path) -> None:
    write(tmp_path / "c", {"weight": {"t": torch.zeros(4, 4)}})
    with Reader(tmp_path / "c") as reader:
        assert reader.has("weight")
        assert not reader.has("exp_avg")
        with pytest.raises(KeyError):
            reader.read("weight", "u", Box.whole((4, 4)))
        with pytest.raises(KeyError):
            reader.read("exp_avg", "t", Box.whole((4, 4)))
        with pytest.raises(ValueError, match="outside"):
            reader.read("weight", "t", Box((0, 0), (4, 5)))
        with pytest.raises(ValueError, match="out has shape"):
            reader.read("weight", "t", Box.whole((4, 4)), torch.zeros(4, 3))


def test_the_header_is_as_written(tmp_path: Path) -> None:
    write(tmp_path / "c", {"weight": {"t": torch.zeros(4, 4)}})
    data = (tmp_path / "c" / "weight-00000.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header["t"] == {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    assert len(data) == 8 + length + 64
