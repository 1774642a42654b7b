"""What the ranks of `bench.py store` do: the same rows of the same tensors, through our store and through others."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint import filesystem, state_dict_loader, state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from growth import Architecture, Box
from pretrain.checkpoint import KINDS, Checkpointer, ManifestFields, Reader

Shapes = Mapping[str, tuple[int, ...]]
Work = Callable[[], object]
STEP = 1


def fields(arch: Architecture) -> ManifestFields:
    """A manifest for tensors of this architecture."""
    shapes = {name: tensor.shape for name, tensor in arch.tensors().items()}
    return ManifestFields(architecture=arch.to_json(), stage="bench", shapes=shapes)


def content(kind: str, name: str, box: Box) -> torch.Tensor:
    """Numbers that do not compress and differ from tensor to tensor."""
    generator = torch.Generator().manual_seed(hash((kind, name, box)) % 2**63)  # any seed will do
    return torch.randn(box.shape, generator=generator)


def _rows(shape: tuple[int, ...], rank: int, world: int) -> Box:
    """A rank's rows, cut as DTensor cuts them."""
    size = -(-shape[0] // world)
    first, last = min(rank * size, shape[0]), min((rank + 1) * size, shape[0])
    return Box((first, *(0 for _ in shape[1:])), (last, *shape[1:]))


def save_ours(rank: int, world: int, folder: Path, arch: Architecture) -> Work:
    """Every rank saves its rows of weights and moments."""
    about = fields(arch)
    boxes = {name: _rows(tuple(shape), rank, world) for name, shape in about.shapes.items()}
    tensors = {kind: [(name, box, content(kind, name, box)) for name, box in boxes.items()] for kind in KINDS}
    checkpointer = Checkpointer(folder)
    return lambda: checkpointer.save(STEP, tensors, about)


def load_ours(rank: int, world: int, path: Path, arch: Architecture) -> Work:
    """Every rank loads its rows, cut for another number of ranks."""
    boxes = {name: _rows(tensor.shape, rank, world) for name, tensor in arch.tensors().items()}
    into = {(kind, name): torch.ones(box.shape) for kind in KINDS for name, box in boxes.items()}

    def work() -> None:
        with Reader(path) as reader:
            for (kind, name), out in into.items():
                reader.read(kind, name, boxes[name], out)

    return work


def _dtensors(rank: int, world: int, arch: Architecture, fill: bool) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for kind in KINDS:
        for name, tensor in arch.tensors().items():
            box = _rows(tensor.shape, rank, world)
            local = content(kind, name, box) if fill else torch.ones(box.shape)
            stride = torch.empty(tensor.shape, device="meta").stride()
            whole = DTensor.from_local(
                local, mesh, [Shard(0)], run_check=False, shape=torch.Size(tensor.shape), stride=stride
            )
            found[f"{kind}.{name}"] = whole
    return found


def save_dcp(rank: int, world: int, folder: Path, arch: Architecture) -> Work:
    """The same rows, saved by torch.distributed.checkpoint, which forces its files to the disk too."""
    state = _dtensors(rank, world, arch, fill=True)
    writer = filesystem.FileSystemWriter(folder, sync_files=True)
    return lambda: state_dict_saver.save(state, storage_writer=writer)


def load_dcp(rank: int, world: int, folder: Path, arch: Architecture) -> Work:
    """The same rows, loaded by torch.distributed.checkpoint."""
    state = _dtensors(rank, world, arch, fill=False)
    return lambda: state_dict_loader.load(state, storage_reader=filesystem.FileSystemReader(folder))


def save_zero(rank: int, world: int, folder: Path, arch: Architecture) -> Work:
    """DeepSpeed's own checkpoint of a ZeRO-1 engine with data parallelism."""
    from pretrain.engine.engine import Adam, Engine
    from pretrain.engine.megatron import Numerics
    from pretrain.layout import Layout

    engine = Engine(arch, Layout.make(arch.layers, dp=world), Numerics(), Adam(), seq_len=8, micro_batch=1)
    for owned in engine.owned:
        for kind in KINDS:
            whole = Box((0,), (owned.weight.numel(),))
            getattr(owned, kind).copy_(content(kind, owned.parameter.name, whole))
    engine.publish_weights()

    def no_extra_state(module: object, state: dict[str, torch.Tensor | None], *_: object) -> None:
        for name in [name for name, value in state.items() if value is None]:  # ds_to_universal fails on Megatron's
            del state[name]

    engine._zero.engine.module.register_state_dict_post_hook(no_extra_state)
    return lambda: engine._zero.engine.save_checkpoint(str(folder), tag="zero")
