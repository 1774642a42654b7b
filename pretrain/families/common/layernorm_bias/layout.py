"""What GPT-2 and BERT share in Megatron-core: LayerNorm and linears with biases."""

from __future__ import annotations

from dataclasses import dataclass

from growth.architecture import Architecture
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.layout.cuts import Parameter, Place
from pretrain.layout.spans import spans


@dataclass(frozen=True)
class Layer:
    """The names that a family's table has for the parts of one layer, without `.weight` and `.bias`."""

    input_norm: str
    query: str
    key: str
    value: str
    projection: str
    mlp_norm: str
    fc1: str
    fc2: str


def norm(place: Place, name: str, tensor: str, hidden: int) -> list[Parameter]:
    """A LayerNorm, whole on every tensor-parallel rank."""
    return [place.whole(f"{name}.{part}", f"{tensor}.{part}", (hidden,)) for part in ("weight", "bias")]


def whole_linear(place: Place, name: str, tensor: str, out: int, into: int) -> list[Parameter]:
    """A linear that tensor parallelism does not cut."""
    return [
        place.whole(f"{name}.weight", f"{tensor}.weight", (out, into)),
        place.whole(f"{name}.bias", f"{tensor}.bias", (out,)),
    ]


def row_parallel(place: Place, name: str, tensor: str, out: int, into: int) -> list[Parameter]:
    """Megatron's RowParallelLinear: the weight is cut, the bias is whole and added once, to the sum."""
    return [
        place.columns(f"{name}.weight", f"{tensor}.weight", (out, into)),
        place.whole(f"{name}.bias", f"{tensor}.bias", (out,)),
    ]


def column_parallel(place: Place, name: str, tensor: str, out: int, into: int) -> list[Parameter]:
    """Megatron's ColumnParallelLinear: weight and bias are cut alike."""
    return [
        place.rows(f"{name}.weight", f"{tensor}.weight", (out, into)),
        place.rows(f"{name}.bias", f"{tensor}.bias", (out,)),
    ]


def layer(arch: Architecture, place: Place, kind: str, to: str, of: str, names: Layer) -> list[Parameter]:
    """One pre-norm layer with as many kv heads as heads, in the order in which Megatron-core registers it."""
    hidden, heads, head_dim, ffn = (arch.sizes[axis] for axis in ("hidden", "heads", "head_dim", "ffn"))
    qkv = [f"{of}{name}" for name in (names.query, names.key, names.value)]

    def fused(part: str, *rest: int) -> Parameter:
        q, k, v = (f"{name}.{part}" for name in qkv)
        return place.qkv(f"{to}self_attention.linear_qkv.{part}", (q, k, v), heads, heads, head_dim, *rest)

    listed = []
    if kind in ATTENTION:
        listed += norm(place, f"{to}input_layernorm", of + names.input_norm, hidden)
        listed += spans(arch, place, to, f"{qkv[0]}.weight")
        listed += row_parallel(
            place, f"{to}self_attention.linear_proj", of + names.projection, hidden, heads * head_dim
        )
        listed += [fused("weight", hidden), fused("bias")]
    if kind in MLP:
        listed += norm(place, f"{to}pre_mlp_layernorm", of + names.mlp_norm, hidden)
        listed += column_parallel(place, f"{to}mlp.linear_fc1", of + names.fc1, ffn, hidden)
        listed += row_parallel(place, f"{to}mlp.linear_fc2", of + names.fc2, hidden, ffn)
    return listed
