"""The globals that a checkpoint of Megatron-LM or DeepSpeed names, and the plain data that stands for each.

Nothing is imported by these names: they are only compared. What is not here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pretrain.megatron_lm.pickles import Maker, Record


@dataclass(frozen=True)
class Storage:
    """Elements of a dtype that begin at a byte of a file."""

    begin: int
    dtype: torch.dtype
    numel: int


def _record(name: str) -> Maker:
    return Maker(lambda *args: Record(name, args))


def _dtypes() -> dict[str, torch.dtype]:
    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    storages = {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }
    return {f"torch.{name}": dtype for name, dtype in {**{n: getattr(torch, n) for n in names}, **storages}.items()}


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as older protocols of pickle spell them."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


DCP = "torch.distributed.checkpoint"
CLASSES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(
        f"{DCP}.metadata.{name}"
        for name in (
            *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "StorageMeta"),
            *("ChunkStorageMetadata", "MetadataIndex", "_MEM_FORMAT_ENCODING"),
        )
    ),
    f"{DCP}.filesystem._StorageInfo",
    *(f"{DCP}.planner.{name}" for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    *("megatron.core.dist_checkpointing.strategies.torch." + name for name in ("MCoreMetadata", "MCoreSavePlan")),
    *("pathlib.PosixPath", "pathlib._local.PosixPath", "signal.Signals", "torch.device"),
    "megatron.core.enums.ModelType",
    *(f"megatron.core.transformer.enums.{name}" for name in ("AttnBackend", "AttnMaskType", "AttnType", "LayerType")),
    *(f"megatron.core.transformer.enums.{name}" for name in ("CudaGraphScope", "ModelType")),
    *(f"megatron.core.rerun_state_machine.{name}" for name in ("RerunDiagnostic", "RerunMode", "RerunState")),
    *(f"megatron.model.enums.{name}" for name in ("AttnMaskType", "AttnType", "LayerType", "ModelType")),
    *(f"megatron.legacy.model.enums.{name}" for name in ("AttnMaskType", "AttnType", "LayerType", "ModelType")),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),  # states of random numbers, which are not used
    *(f"deepspeed.runtime.fp16.loss_scaler.{name}" for name in ("LossScaler", "DynamicLossScaler")),
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""Classes whose objects become a Record. Of those whose content is used, the readers check it."""

KNOWN: dict[str, Any] = {
    **{name: _record(name) for name in CLASSES},
    **_dtypes(),
    "collections.OrderedDict": Maker(dict),
    "collections.defaultdict": Maker(lambda *_: {}),
    "builtins.dict": Maker(dict),
    "builtins.set": Maker(lambda values=(): set(map(_scalar, values))),
    "torch.Size": Maker(_tuple),
    "torch.serialization._get_layout": Maker(lambda name: str(name)),
    "_codecs.encode": Maker(_encoded),
    "torch.Tensor": Maker(partial(Record, "torch.Tensor")),
    "torch.nn.parameter.Parameter": Maker(partial(Record, "torch.nn.parameter.Parameter")),
}


def _scalar(value: Any) -> Any:
    if not isinstance(value, (str, int, float, bytes)):
        raise TypeError(f"{type(value).__name__} in a set")
    return value
