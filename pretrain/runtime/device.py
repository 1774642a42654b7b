"""The GPU of a rank: what its libraries read from the environment when they start, and which GPU it is."""

from __future__ import annotations

import os

import torch

from pretrain.errors import UserError

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The caching allocator's settings: their name, and the one that torch had for them before 2.9 and still reads."""

DETERMINISTIC = {
    "NCCL_ALGO": "Ring",  # sums in one order, even if another is faster; in-network sums have no order
    "NCCL_PROTO": "Simple",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch refuses any but this and :16:8
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # compiled kernels are chosen without timing them
}


def prepare(*, tp: int, deterministic: bool = False) -> None:
    """Set what CUDA, NCCL, cuBLAS and torch read when they start: call it before the first use of a GPU.

    tp: tensor-parallel ranks. deterministic: as the key train.deterministic, for the rest of this process.
    What the user has set in the environment stays as it is.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        # Growth events and generations leave holes that blocks of a fixed size cannot fill.
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if tp > 1:
        # One queue of kernels: Megatron-core counts on a collective starting before the matrix product that hides it.
        # Without tensor parallelism it would only make the streams of copies and sends wait for each other.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if deterministic:
        for name, value in DETERMINISTIC.items():
            os.environ.setdefault(name, value)
        # Also picks the deterministic backward passes of flash attention and of look-ups.
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention does not promise to be deterministic
        # Filling memory is a tool for finding faults, which costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, or of the device already, on the device, without waiting for it."""
    return x if x.device.type == device.type else x.pin_memory().to(device, non_blocking=True)


def own_gpu() -> int:
    """The index, among the GPUs that this process sees, of the one that belongs to this rank (LOCAL_RANK's).

    Where the scheduler has bound one GPU to each task, that is the only one. Raises UserError when there are fewer GPUs
    than ranks on this host.
    """
    local, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if visible == 1:
        return 0
    if local >= visible:
        visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise UserError(
            f"rank {local} of this host (from 0) sees {visible} GPUs (CUDA_VISIBLE_DEVICES: {visible_devices}): "
            "start as many ranks on a host as it has GPUs, or bind one GPU to each"
        )
    return local
