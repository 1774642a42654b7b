"""The collectives of NCCL, which check what they are given, note it, and do nothing.

Ranks are compared afterwards by what each has noted; see `compare`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.dryrun.device import put
from pretrain.dryrun.findings import FINDINGS, here
from pretrain.dryrun.kernels import on_device
from pretrain.runtime.comm import Comm

T = TypeVar("T")

TYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
    )
)
"""That NCCL has."""
OPERATIONS = (dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX)

Call = tuple[str, tuple[int, ...], str, str, str]
"""(operation, ranks of its group or the two of a message, what is moved, line, phase)"""


class Record:
    """What this rank asked of NCCL, in order, and the bytes since `clear` by operation and size of the group."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.bytes: Counter[tuple[str, int]] = Counter()

    def note(self, operation: str, group: Any, what: str, size: int) -> None:
        ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
        if dist.get_rank() not in ranks:
            FINDINGS.add("error", f"NCCL {operation} over ranks of which this is none")
        self.calls.append((operation, ranks, what, next(iter(here(1)), ""), FINDINGS.phase))
        if len(ranks) > 1:
            self.bytes[operation, len(ranks)] += size

    def message(self, operation: str, source: int, to: int, what: str) -> None:
        self.calls.append((operation, (source, to), what, next(iter(here(1)), ""), FINDINGS.phase))


RECORD = Record()


@dataclass
class Work:
    """A collective that is over."""

    def wait(self, *_: Any, **__: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} x {tensor.numel():,}"


def _check(operation: str, *tensors: Tensor, op: Any = None) -> None:
    for tensor in tensors:
        shape = list(tensor.shape)
        if not on_device(tensor):
            FINDINGS.add("error", f"NCCL {operation} of a tensor on {tensor.device}, {shape}")
        if tensor.dtype not in TYPES:
            FINDINGS.add("error", f"NCCL {operation} of {tensor.dtype}, which it does not have, {shape}")
        if tensor.dtype != tensors[0].dtype:
            FINDINGS.add("error", f"NCCL {operation} of {tensors[0].dtype} and {tensor.dtype}")
        if not tensor.is_contiguous():
            FINDINGS.add("error", f"NCCL {operation} of a tensor that is not contiguous, {shape} {tensor.stride()}")
    if op is not None and op not in OPERATIONS:
        FINDINGS.add("error", f"NCCL {operation} with {op}, which it does not have")


def _fits(operation: str, whole: int, part: int, group: Any) -> None:
    if whole != part * (n := dist.get_world_size(group)):
        FINDINGS.add("error", f"NCCL {operation} over {n} ranks of {part:,} elements a rank and {whole:,} in all")


def _op(op: Any) -> str:
    return str(getattr(op, "op", op)).rpartition(".")[2].lower()


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
    _check("all_reduce", tensor, op=op)
    RECORD.note("all_reduce", group, f"{_op(op)} of {_words(tensor)}", _bytes(tensor))


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: Any = dist.ReduceOp.SUM,
    group: Any = None,
    *,
    group_dst: int | None = None,
) -> None:
    _check("reduce", tensor, op=op)
    to = _member("reduce", dst, group, group_dst)
    RECORD.note("reduce", group, f"{_op(op)} to {to} of {_words(tensor)}", _bytes(tensor))


def broadcast(tensor: Tensor, src: int | None = None, group: Any = None, *, group_src: int | None = None) -> None:
    _check("broadcast", tensor)
    source = _member("broadcast", src, group, group_src)
    RECORD.note("broadcast", group, f"from {source} of {_words(tensor)}", _bytes(tensor))


def _member(operation: str, rank: int | None, group: Any, place: int | None) -> int:
    """The place in a group of a rank that is given by its number or by its place."""
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    if place is not None:
        return place
    if rank not in ranks:
        FINDINGS.add("error", f"NCCL {operation} from or to rank {rank}, which is not in the group {ranks}")
        return -1
    return ranks.index(rank)


def all_gather_into_tensor(output_tensor: Tensor, input_tensor: Tensor, group: Any = None) -> None:
    _check("all_gather", output_tensor, input_tensor)
    _fits("all_gather", output_tensor.numel(), input_tensor.numel(), group)
    RECORD.note("all_gather", group, _words(input_tensor), _bytes(output_tensor))


def all_gather(tensor_list: Sequence[Tensor], tensor: Tensor, group: Any = None) -> None:
    _check("all_gather", tensor, *tensor_list)
    _fits("all_gather", sum(t.numel() for t in tensor_list), tensor.numel(), group)
    RECORD.note("all_gather", group, _words(tensor), _bytes(*tensor_list))


def reduce_scatter_tensor(output: Tensor, input: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
    _check("reduce_scatter", output, input, op=op)
    _fits("reduce_scatter", input.numel(), output.numel(), group)
    RECORD.note("reduce_scatter", group, f"{_op(op)} of {_words(output)}", _bytes(input))


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Any = None,
    input_split_sizes: Any = None,
    group: Any = None,
) -> None:
    _check("all_to_all", output, input)
    RECORD.note("all_to_all", group, _words(input), _bytes(input))


def isend(
    tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0, group_dst: int | None = None
) -> Work:
    to = _peer("send", dst, group, group_dst)
    _check("send", tensor)
    RECORD.message("send", dist.get_rank(), to, f"{list(tensor.shape)} {tensor.dtype}")
    RECORD.bytes["send", 2] += _bytes(tensor)
    return Work()


def irecv(
    tensor: Tensor, src: int | None = None, group: Any = None, tag: int = 0, group_src: int | None = None
) -> Work:
    source = _peer("receive", src, group, group_src)
    _check("receive", tensor)
    RECORD.message("receive", source, dist.get_rank(), f"{list(tensor.shape)} {tensor.dtype}")
    return Work()


def _peer(operation: str, rank: int | None, group: Any, place: int | None) -> int:
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    if rank is None:
        assert place is not None
        rank = ranks[place]
    if rank not in ranks or rank == dist.get_rank():
        FINDINGS.add("error", f"NCCL {operation} of rank {dist.get_rank()} with rank {rank}")
    return rank


def send(*given: Any, **named: Any) -> None:
    isend(*given, **named)


def recv(*given: Any, **named: Any) -> None:
    irecv(*given, **named)


def batch_isend_irecv(p2p_op_list: Sequence[Any]) -> list[Work]:
    return [op.op(op.tensor, op.peer, op.group) for op in p2p_op_list]


def barrier(group: Any = None, device_ids: Any = None) -> None:
    RECORD.note("barrier", group, "", 0)
    FINDINGS.add("wait", "a barrier")


def _objects(operation: str) -> Callable[..., None]:
    """Objects travel as bytes on the device, and the host waits for their size. Every rank is given its own; an empty
    list, which waits for what another rank knows, is given ones."""

    def moved(value: Any, other: Any = None, *_: Any, group: Any = None, **__: Any) -> None:
        RECORD.note(operation, group, "objects", 0)
        FINDINGS.add("wait", operation)
        if operation == "all_gather_object":  # here the list comes first
            value[:] = [other] * len(value)
        elif operation == "broadcast_object_list":
            value[:] = [[1.0] * 3 if x == [] else x for x in value]
        elif operation == "gather_object" and other is not None:
            other[:] = [value] * len(other)

    return moved


def _waited_for(collective: Callable[..., None]) -> Callable[..., Work | None]:
    """With the argument async_op, for which there is something to wait for."""

    def called(*given: Any, async_op: bool = False, **named: Any) -> Work | None:
        collective(*given, **named)
        return Work() if async_op else None

    return called


def install() -> None:
    """Let torch.distributed be NCCL's, of a world whose other ranks are not there.

    Before Megatron-core is imported, which keeps functions of torch.distributed under names of its own.
    """
    assert "megatron.core" not in sys.modules, "its collectives would not be seen"
    parts = (all_gather_into_tensor, all_gather, reduce_scatter_tensor, all_to_all_single)
    made = {f.__name__: _waited_for(f) for f in (all_reduce, reduce, broadcast, *parts, barrier)}
    made |= {"_all_gather_base": made["all_gather_into_tensor"], "_reduce_scatter_base": made["reduce_scatter_tensor"]}
    messages = {f.__name__: f for f in (isend, irecv, send, recv, batch_isend_irecv)}
    objects = {name: _objects(name) for name in ("broadcast_object_list", "gather_object", "all_gather_object")}
    for module in (dist, dist.distributed_c10d):
        put(module, **made, **messages, **objects, get_backend=lambda group=None: "nccl")
    # Every rank of a dry run sees the same disk, so each does what the first one would tell it.
    put(Comm, from_first=lambda comm, value: _told(value), on_first=lambda comm, work, *_: _told(work()))


def _told(value: T) -> T:
    dist.broadcast_object_list([value], src=0)
    return value


def join(rank: int, world: int) -> None:
    """Be this rank of a world of so many."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
