"""DeepSpeed's ZeRO-1 around a Megatron-core model: flat weights, partitions, and the way back into the model.

The only module that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found nothing else

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from pretrain.engine.adamw import AdamW
from pretrain.engine.gradients import FlatGradients

with contextlib.redirect_stdout(io.StringIO()):  # of operators that it cannot compile, and nobody uses here
    import deepspeed

    # On the CPU it would compile a shared-memory all-reduce at the first start; gloo needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# It warns of every optimizer that is not its own.
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
for _handler in logging.getLogger("DeepSpeed").handlers:
    _handler.setStream(sys.stderr)  # type: ignore[attr-defined]


class Zero:
    """The model's weights as one flat tensor, and this data-parallel rank's equal part of it in fp32: the masters.

    Every parameter knows its fragment of the part, if any, as DeepSpeed's `_hp_mapping`. adam must be made of the
    model's parameters, and holds the part afterwards; gradients lie in `gradients`, in the order of the weights. Of an
    fp32 model the masters are its weights.
    """

    def __init__(self, model: torch.nn.ModuleList, adam: AdamW, micro_batch: int) -> None:
        first = next(model.parameters())
        with contextlib.redirect_stdout(io.StringIO()):  # lines of memory, which metrics have too
            self.engine, zero, _, _ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=first.device.index or 0),  # or it takes that of LOCAL_RANK
                model=model,
                optimizer=adam,
                mpu=_mpu(),
                config=_config(first.dtype, micro_batch),
                dist_init_required=False,
            )
        (flat,), (offsets,), (parts,) = (
            zero.bit16_groups_flat,
            zero.round_robin_bit16_offsets,
            zero.parallel_partitioned_bit16_groups,
        )
        group = parallel_state.get_data_parallel_group()
        if flat.dtype == torch.float32:
            zero.single_partition_of_fp32_groups[0].data = parts[dist.get_rank(group)]
            zero._link_all_hp_params()
        self.gradients = FlatGradients(zero.round_robin_bit16_groups[0], offsets, flat.numel(), group)
        self._adam, self._optimizer = adam, zero

    @property
    def masters(self) -> Tensor:
        """This rank's part of the weights, fp32."""
        (part,) = self._adam.param_groups[0]["params"]
        return part

    def update(self, gradient: Tensor) -> None:
        """One update of the masters with this rank's part of the gradient; the model has it after `publish`."""
        self.masters.grad = gradient
        self._adam.step()
        self.masters.grad = None

    def publish(self) -> None:
        """Cast the masters and gather them over the data-parallel ranks into the model (collective)."""
        self._optimizer.update_lp_params()

    def destroy(self) -> None:
        """Give up what DeepSpeed holds of the model."""
        self.engine.destroy()


def _config(dtype: torch.dtype, micro_batch: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,  # Megatron's schedule accumulates
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1, "overlap_comm": False, "contiguous_gradients": False},
        "steps_per_print": 2**62,
    }
    return config | ({"bf16": {"enabled": True}} if dtype == torch.bfloat16 else {})


def _mpu() -> SimpleNamespace:
    """Megatron's process groups under the names that DeepSpeed asks for."""
    names = (
        "get_tensor_model_parallel_rank",
        "get_tensor_model_parallel_world_size",
        "get_tensor_model_parallel_group",
        "get_pipeline_model_parallel_rank",
        "get_pipeline_model_parallel_world_size",
        "get_pipeline_model_parallel_group",
        "get_data_parallel_rank",
        "get_data_parallel_world_size",
        "get_data_parallel_group",
        "get_model_parallel_group",
    )
    groups = {name: getattr(parallel_state, name) for name in names}
    return SimpleNamespace(
        **groups,
        get_model_parallel_rank=lambda: dist.get_rank(parallel_state.get_model_parallel_group()),
        get_model_parallel_world_size=lambda: dist.get_world_size(parallel_state.get_model_parallel_group()),
    )
