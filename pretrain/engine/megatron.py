"""From an architecture and a layout to this rank's Megatron-core model."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlock

from growth.architecture import Architecture
from growth.family import Stream
from pretrain import families
from pretrain.config import LayerDrop
from pretrain.engine import cpu, lora
from pretrain.families.parameters import parameters
from pretrain.kernels import fused
from pretrain.layout import Layout
from pretrain.runtime.ranks import COLLECTIVE_TIMEOUT


@dataclass(frozen=True)
class Numerics:
    """How a model is computed: working precision ("fp32" or "bf16") and activation recomputation.

    recompute is "none", "selective" (core attention, Korthikanti et al. 2022, section 5) or "full" (whole layers, in
    units of recompute_layers). compile: whether what lies between matrix products is compiled (pretrain.kernels.fused);
    None: on a CUDA device. dropout, attention_dropout, layer_drop and lora_dropout: the probabilities, where a
    step is given a key.
    """

    precision: str = "fp32"
    recompute: str = "none"
    recompute_layers: int = 1
    compile: bool | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_drop: LayerDrop = field(default_factory=LayerDrop)
    lora_dropout: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


_made_for: tuple[Any, ...] | None = None  # of the process groups that there are: the default one, and the layout


def make_groups(layout: Layout) -> None:
    """Create Megatron's process groups for this layout, replacing those of another; those of equal ranks are kept.

    torch.distributed must be initialised with layout.world ranks. Collective.
    """
    global _made_for
    cpu.adapt()
    wanted = (dist.group.WORLD, layout.tp, layout.pp, layout.dp)
    if not parallel_state.model_parallel_is_initialized() or _made_for != wanted:
        _leave()
        _made_for = wanted
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=COLLECTIVE_TIMEOUT // timedelta(minutes=1),
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(layout.virtual if layout.virtual > 1 else None)


def _leave() -> None:
    """Destroy Megatron's process groups; torch's default group stays.

    Megatron's own destroy_model_parallel only forgets them: NCCL's communicators would keep their memory, a few hundred
    megabytes for each layout.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    there = dist.distributed_c10d._world.pg_map  # none of an earlier default group's
    for group in reversed(parallel_state._global_process_group_list or []):
        if group is not None and group in there:
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def transformer_config(arch: Architecture, layout: Layout, numerics: Numerics) -> TransformerConfig:
    """Megatron's configuration for this architecture, layout and precision."""
    choices: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        "full": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": numerics.recompute_layers,
        },
    }
    sizes = arch.sizes
    of_every_family = {
        "num_layers": arch.depth,
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "num_query_groups": sizes.get("kv_heads", sizes["heads"]),
        "kv_channels": sizes["head_dim"],
        "ffn_hidden_size": sizes["ffn"],
        "layernorm_epsilon": arch.scalars["norm_eps"],
        "softmax_scale": arch.scalars["softmax_scale"],
        "normalization": "RMSNorm" if arch.table.norm == "rms" else "LayerNorm",
        "bias_activation_fusion": False,
    }
    return TransformerConfig(
        **{**of_every_family, **families.of(arch.family).model.config_fields(arch)},
        **choices[numerics.recompute],
        hidden_dropout=numerics.dropout,
        attention_dropout=numerics.attention_dropout,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        pipeline_model_parallel_layout=layout.megatron if layout.pp > 1 else None,
        sequence_parallel=layout.sequence_parallel,
        pipeline_dtype=numerics.dtype,
        params_dtype=numerics.dtype,
        bf16=numerics.precision == "bf16",
        # The values are drawn and grown by address, never by Megatron; see growth/random/philox.py.
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,
        output_layer_init_method=torch.nn.init.zeros_,  # never called; the default divides by the number of layers
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),  # of look-ups; see train.deterministic
        gradient_accumulation_fusion=False,  # its dummy gradient would be added by DeepSpeed
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        # Interleaved, sends and receives run beside the computation; two in a batch between the same ranks could hang.
        overlap_p2p_comm=layout.virtual > 1,
        batch_p2p_comm=torch.cuda.is_available() and layout.virtual == 1,
        batch_p2p_sync=False,  # against a race in torch before 1.13; it would wait for the device after every send
        deallocate_pipeline_outputs=layout.virtual == 1,  # not of what is still being sent
    )


def build(
    arch: Architecture, layout: Layout, numerics: Numerics, *, seq_len: int, pp_rank: int, tp_rank: int
) -> torch.nn.ModuleList:
    """This rank's pipeline chunks, on its device, with values not yet set (under torch.device("meta"): without any).

    Raises RuntimeError when a built parameter differs from what pretrain.layout says of it: the two must agree or
    growth would write to the wrong place; UserError when kernels are asked for that cannot be compiled here.
    """
    config, compiled = transformer_config(arch, layout, numerics), fused.chosen(numerics.compile)
    last = len(layout.pipeline) - 1
    chunks = torch.nn.ModuleList(
        families.of(arch.family).model.build_chunk(
            arch,
            config,
            seq_len=seq_len,
            kinds=[arch.blocks[number].kind for number in numbers],
            first=chunk == 0,
            last=chunk == last,
            chunk=i if layout.virtual > 1 else None,
            fused=compiled,
        )
        for i, (chunk, numbers) in enumerate(layout.chunks(pp_rank))
    )
    if arch.adapters:
        for chunk, (_, numbers) in zip(chunks, layout.chunks(pp_rank), strict=True):
            lora.attach(chunk, arch, numbers, tp_rank, layout.tp, numerics.lora_dropout, fused=compiled)
    if arch.shared:
        _share(arch, layout, pp_rank, chunks)
    expected = parameters(arch, layout, pp_rank, tp_rank)
    built = [(name, tuple(p.shape)) for name, p in chunks.named_parameters()]
    if built != [(p.name, p.shape) for p in expected]:
        pairs = zip_longest(built, [(p.name, p.shape) for p in expected])
        differ = next(pair for pair in pairs if pair[0] != pair[1])
        raise RuntimeError(f"the layout of {arch.family} does not describe the built model; first difference: {differ}")
    for parameter, wanted in zip(chunks.parameters(), expected, strict=True):
        for attribute in ("tensor_model_parallel", "partition_dim", "partition_stride"):
            if hasattr(parameter, attribute):
                delattr(parameter, attribute)
        # Without initialisation Megatron leaves these unset, and DeepSpeed would count sharded gradients once only.
        sharded = wanted.dim is not None
        set_tensor_model_parallel_attributes(parameter, sharded, wanted.dim if wanted.dim is not None else -1, 1)
    if (device := torch.get_default_device()).type != "meta":
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return chunks.to(device=device, dtype=numerics.dtype)


def boundaries(arch: Architecture, layout: Layout, pp_rank: int) -> dict[str, Any]:
    """What Megatron-core's schedule must be told of the streams that this rank receives and sends, where they are not
    the same between all ranks: their shapes follow from the blocks, so that no rank asks another for them."""
    if layout.pp == 1 or not arch.table.streams:
        return {}
    ((_, numbers),) = layout.chunks(pp_rank)

    def shape(usual: list[tuple[int, int, int]], stream: Stream) -> list[tuple[int, int, int]]:
        return [(length // stream.tokens, batch, hidden * stream.width) for length, batch, hidden in usual]

    received, sent = arch.stream(numbers.start), arch.stream(numbers.stop)
    return {"adjust_tensor_shapes_fn": lambda recv, send: (shape(recv, received), shape(send, sent))}


def _share(arch: Architecture, layout: Layout, pp_rank: int, chunks: torch.nn.ModuleList) -> None:
    """Gives blocks that call one layer the same parameters, so that their gradients add up; each keeps its number."""
    made: dict[int, torch.nn.Module] = {}
    for chunk, (_, numbers) in zip(chunks, layout.chunks(pp_rank), strict=True):
        block = transformer_block(chunk)
        for local, number in enumerate(numbers):
            first = made.setdefault(arch.calls[number], block.layers[local])
            for name, parameter in first.named_parameters():
                module, _, attribute = name.rpartition(".")
                setattr(block.layers[local].get_submodule(module), attribute, parameter)


def transformer_block(chunk: torch.nn.Module) -> TransformerBlock:
    """That of a pipeline chunk, whatever its family calls it."""
    return next(module for module in chunk.modules() if isinstance(module, TransformerBlock))
