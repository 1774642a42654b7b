"""Convolution Attention on Megatron-core's GPTModel: its layers at every width, and what leads from level to level."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from growth.architecture import Architecture
from growth.family import Stream
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.documents import Documents
from pretrain.families.common.layer import FusedLayer, Layer
from pretrain.families.common.norm import FusedRMSNorm, RMSNorm
from pretrain.families.convolution_attention.padding import is_text
from pretrain.families.convolution_attention.table import BLOCKS, COMPRESSORS, TABLE, TAPS

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What lies between the two matrices of an MLP; there is no bias."""
    return F.gelu(x, approximate="tanh")


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is its own in Megatron's TransformerConfig."""
    return {"activation_func": gelu, "add_bias_linear": False}


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    """One pipeline chunk, whose samples may be shorter than its positions; where: see build_gpt."""
    return build_gpt(
        arch,
        config,
        FusedRMSNorm if fused else RMSNorm,
        gelu,
        fused=fused,
        model=PaddedLM,
        of_kind=_spec,
        max_sequence_length=arch.sizes["positions"],
        share_embeddings_and_output_weights=False,
        position_embedding_type="learned_absolute",
        **where,
    )


class PaddedLM(CausalLM):
    """A model in which the embedding of padding is zero."""

    def _preprocess(self, *, packed_seq_params: Documents | None = None, **given: Any) -> Any:
        embedded_SBD, *rest = super()._preprocess(packed_seq_params=packed_seq_params, **given)
        if embedded_SBD is not None and packed_seq_params is not None:
            text_BS = is_text(packed_seq_params.samples)
            assert text_BS is not None
            length, at = embedded_SBD.shape[0], 0
            if self.config.sequence_parallel:
                at = parallel_state.get_tensor_model_parallel_rank() * length
            embedded_SBD = embedded_SBD * text_BS.t()[at : at + length, :, None]
        return embedded_SBD, *rest


def _spec(usual: ModuleSpec, kind: str) -> ModuleSpec:
    """Of a layer of this kind, from that of a usual layer."""
    takes, gives = TABLE.through(kind)
    if kind == BLOCKS[0]:
        return usual
    if kind in BLOCKS:
        level = FusedLevelLayer if usual.module is FusedLayer else LevelLayer
        return replace(usual, module=level, params={**usual.params, "stream": takes})
    between = Compressor if kind in COMPRESSORS else Expander
    return ModuleSpec(module=between, params={"takes": takes, "gives": gives})


class _AtLevel(Layer):
    """A layer of attention and an MLP at a level: wider, and of fewer units."""

    def __init__(self, config: TransformerConfig, *args: Any, stream: Stream, **kwargs: Any) -> None:
        self._tokens = stream.tokens
        own = copy.copy(config)
        for size in ("hidden_size", "kv_channels", "ffn_hidden_size"):
            setattr(own, size, stream.width * getattr(config, size))
        own.softmax_scale = config.softmax_scale * stream.width**-0.5
        super().__init__(own, *args, **kwargs)

    def forward(self, *args: Any, packed_seq_params: Documents | None = None, **kwargs: Any) -> Any:
        documents = packed_seq_params and packed_seq_params.in_units(self._tokens)
        return super().forward(*args, packed_seq_params=documents, **kwargs)


class LevelLayer(_AtLevel):
    """Megatron-core's layer at a level."""


class FusedLevelLayer(_AtLevel, FusedLayer):
    """The same with kernels."""


class _Between(MegatronModule):
    """A matrix that leads from one level to the next, cut along what it takes: every tensor-parallel rank has some of
    the channels, and the sum over ranks is the stream again."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        takes: int,
        gives: int,
        layer_number: int,
        pg_collection: Any = None,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number, self.cut = layer_number, config.sequence_parallel
        self.linear = RowParallelLinear(
            takes,
            gives,
            config=config,
            init_method=config.init_method,
            bias=False,
            input_is_parallel=self.cut,
            skip_bias_add=True,
        )

    def _multiplied(self, x_SBD: Tensor) -> Tensor:
        """Of the rank's units, [S, B, gives], of [S, B, takes]."""
        if self.cut:  # it has all channels of some units, and needs some channels of all
            width = self.linear.input_size_per_partition
            rank = parallel_state.get_tensor_model_parallel_rank()
            x_SBD = gather_from_sequence_parallel_region(x_SBD).narrow(-1, rank * width, width)
        product: Tensor = self.linear(x_SBD)[0]
        return product


def _stream(made: Tensor) -> tuple[Tensor, None]:
    """What a layer of Megatron-core gives: a stream that is no view, and nothing in place of a context."""
    return make_viewless_tensor(made, requires_grad=made.requires_grad, keep_graph=True), None


class Compressor(_Between):
    """A convolution with as large a stride as its kernel: of so many units one."""

    def __init__(self, config: TransformerConfig, *, takes: Stream, gives: Stream, **kwargs: Any) -> None:
        hidden = config.hidden_size
        super().__init__(config, takes=TAPS * takes.width * hidden, gives=gives.width * hidden, **kwargs)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return _stream(self._multiplied(hidden_states.unflatten(0, (-1, TAPS)).permute(0, 2, 3, 1).flatten(2)))


class Expander(_Between):
    """Its transpose: of one unit so many."""

    def __init__(self, config: TransformerConfig, *, takes: Stream, gives: Stream, **kwargs: Any) -> None:
        hidden = config.hidden_size
        super().__init__(config, takes=takes.width * hidden, gives=TAPS * gives.width * hidden, **kwargs)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        units = self._multiplied(hidden_states).unflatten(-1, (-1, TAPS))
        return _stream(units.permute(0, 3, 1, 2).flatten(0, 1))
