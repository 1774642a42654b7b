"""A transformer layer whose operations between matrix products are kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from pretrain.families.common import dropout, layer_drop, linear, memory
from pretrain.families.common.documents import Documents
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.kernels.dropout import BiasDropout, Drop, Dropout, drop_channels
from pretrain.kernels.norm import AddBias
from pretrain.kernels.rotary import rotated_parts, table

Activation = Callable[[Tensor, Tensor | None], Tensor]
"""What lies between the two linear layers of an MLP: a function of the first one's output and bias."""


def layer_specs(
    submodules: TransformerLayerSubmodules, activation: Activation | None, kinds: Sequence[str]
) -> list[ModuleSpec]:
    """A layer of these parts for each of the kinds, or of some of them: Megatron-core's own, or with an activation made
    of kernels a fused one."""
    if activation is None:
        return [ModuleSpec(module=Layer, submodules=_of_kind(submodules, kind)) for kind in kinds]
    if linear.available():
        attention, mlp = submodules.self_attention, submodules.mlp
        column, row = linear.LocalColumnParallelLinear, linear.LocalRowParallelLinear
        submodules = replace(
            submodules,
            self_attention=replace(
                attention, submodules=replace(attention.submodules, linear_qkv=column, linear_proj=row)
            ),
            mlp=replace(mlp, submodules=replace(mlp.submodules, linear_fc1=column, linear_fc2=row)),
        )
    params = {"activation": activation}
    return [ModuleSpec(module=FusedLayer, params=params, submodules=_of_kind(submodules, kind)) for kind in kinds]


def _of_kind(parts: TransformerLayerSubmodules, kind: str) -> TransformerLayerSubmodules:
    """The parts of a layer of this kind: Megatron-core passes by those that are the identity."""
    if kind not in ATTENTION:
        parts = replace(parts, input_layernorm=IdentityOp, self_attention=IdentityOp, self_attn_bda=IdentityFuncOp)
    if kind not in MLP:
        parts = replace(parts, pre_mlp_layernorm=IdentityOp, mlp=IdentityOp, mlp_bda=IdentityFuncOp)
    return parts


class Layer(TransformerLayer):
    """Megatron-core's layer, with dropout by address, of which a part or the whole may be left out.

    remembers: whether its attention may have a memory.
    """

    remembers = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = not isinstance(self.self_attention, IdentityOp), not isinstance(self.mlp, IdentityOp)
        has_attention, has_mlp = self._parts
        if self.hidden_dropout and has_attention:
            self.self_attn_bda = lambda *_: partial(self._add, dropout.ATTENTION)
        if self.hidden_dropout and has_mlp:
            self.mlp_bda = lambda *_: partial(self._add, dropout.MLP)

    @property
    def has_attention(self) -> bool:
        """Whether it is not an MLP alone."""
        return self._parts[0]

    def runs(self, part: int) -> bool:
        """Whether the layer has this part (see pretrain.families.common.layer_drop), and it is not left out now."""
        return self._parts[part] and not (self.training and layer_drop.left_out(self.layer_number, part))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As Megatron-core's, which calls the two below."""
        output: tuple[Tensor, Tensor | None]
        if self.runs(layer_drop.ATTENTION) or self.runs(layer_drop.MLP):
            output = super().forward(hidden_states, *args, **kwargs)
        else:
            output = layer_drop.passed_on(hidden_states), None
        self._keep(hidden_states)
        return output

    def _keep(self, hidden: Tensor) -> None:
        """This was the layer's input; once it has seen what it remembered, for that may make room."""
        if self.remembers and (segment := memory.current()) is not None:
            segment.keep(self.layer_number, hidden)

    def _remembered(self) -> Tensor | None:
        """The memory of the layer, normed as what its attention gets, as far back as that sees; None: it has none now.
        Under sequence parallelism, where each rank has some places of it, all of it."""
        before = None
        if self.remembers and (segment := memory.current()) is not None:
            before = segment.before(self.layer_number)
        if before is None:
            return None
        normed: Tensor = self.input_layernorm(before)
        reach = None if self.config.sequence_parallel else self.self_attention.core_attention.reach
        return normed if reach is None else normed[max(0, len(normed) - reach) :]

    def _forward_attention(
        self, hidden_states: Tensor, *args: Any, rotary_pos_emb: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not self.runs(layer_drop.ATTENTION):
            return hidden_states, None
        angles: Any = rotary_pos_emb
        if (remembered := self._remembered()) is not None:
            self.self_attention.remembered = remembered
            if angles is not None:  # queries are of the segment alone
                angles = angles[memory.places() :], angles
        output = super()._forward_attention(hidden_states, *args, rotary_pos_emb=angles, **kwargs)
        if remembered is not None:
            self.self_attention.remembered = None
        return output

    def _forward_mlp(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super()._forward_mlp(hidden_states, *args, **kwargs) if self.runs(layer_drop.MLP) else hidden_states

    def _drop(self, place: int, stream: Tensor) -> Drop | None:
        return dropout.of_stream(self.config, place, stream, self.layer_number) if self.training else None

    def _add(self, place: int, branch_and_bias: tuple[Tensor, Tensor | None], stream: Tensor, _: float) -> Tensor:
        """In place of Megatron-core's `bias_dropout_add`."""
        branch, bias = branch_and_bias
        branch = branch if bias is None else branch + bias
        drop = self._drop(place, stream)
        return stream + (branch if drop is None else Dropout.apply(branch, drop, drop_channels.eager))


class FusedLayer(Layer):
    """Megatron-core's layer, with its parameters, linear layers and core attention, and a forward pass of its own.

    Its norms are those of pretrain.families.common.norm with `add`.
    """

    def __init__(self, *args: Any, activation: Activation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation
        if not isinstance(self.self_attention, IdentityOp):
            self.self_attention.core_attention.fused = True

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Documents | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The stream after this layer, [S, B, hidden]; and nothing in place of a context."""
        hidden, branch, bias = hidden_states, None, None
        if self.runs(layer_drop.ATTENTION):
            hidden, normed = self.input_layernorm.add(hidden)
            attended = self._attention(normed, attention_mask, rotary_pos_emb, packed_seq_params)
            branch, bias = self._dropped(dropout.ATTENTION, *attended)
        self._keep(hidden_states)
        if self.runs(layer_drop.MLP):
            hidden, normed = self.pre_mlp_layernorm.add(hidden, branch, bias)
            inner, bias = self.mlp.linear_fc1(normed)
            branch, bias = self._dropped(dropout.MLP, *self.mlp.linear_fc2(self.activation(inner, bias)))
        if branch is None:
            return layer_drop.passed_on(hidden), None
        return hidden + branch if bias is None else AddBias.apply(hidden, branch, bias), None

    def _dropped(self, place: int, branch: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A branch and the bias that is still to be added to it, which is none where something is dropped."""
        if (drop := self._drop(place, branch)) is None:
            return branch, bias
        if bias is None:
            return Dropout.apply(branch, drop, drop_channels), None
        return BiasDropout.apply(branch, bias, drop), None

    def _attention(
        self, normed: Tensor, mask: Tensor | None, angles: Tensor | None, documents: Documents | None
    ) -> tuple[Tensor, Tensor | None]:
        """The attention's output and the bias that is still to be added to it."""
        attention = self.self_attention
        mixed, _ = attention.linear_qkv(normed)
        if (remembered := self._remembered()) is not None:
            mixed = memory.joined(attention.linear_qkv(remembered)[0], mixed)
        groups, size = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
        mixed = mixed.unflatten(-1, (groups, -1))
        if not isinstance(attention.q_layernorm, IdentityOp):
            query, key, value = mixed.split((mixed.shape[-1] - 2 * size, size, size), dim=-1)
            query = attention.q_layernorm(query.unflatten(-1, (-1, size))).flatten(3)
            mixed = torch.cat((query, attention.k_layernorm(key), value), dim=-1)
        if angles is None:
            query, key, value = mixed.split((mixed.shape[-1] - 2 * size, size, size), dim=-1)
            query = query.unflatten(-1, (-1, size)).flatten(2, 3)
        else:
            query, key, value = rotated_parts(mixed, *table(angles, mixed.dtype))
        if remembered is not None:
            query = query[memory.places() :]
        if attention.checkpoint_core_attention and self.training:
            how = {"attn_mask_type": attention.attn_mask_type, "packed_seq_params": documents}
            output = attention._checkpointed_attention_forward(query, key, value, mask, **how)
        else:
            output = attention.core_attention(query, key, value, mask, packed_seq_params=documents)
        return attention.linear_proj(output)
