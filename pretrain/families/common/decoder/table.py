"""The tensors of a decoder as LLaMA-2 has it (Touvron et al., 2023): pre-norm, RMSNorm, SwiGLU, rotary embeddings and
grouped queries. Families of such decoders differ in what is said here of each; their other rooms read it off the table.
"""

from collections.abc import Mapping
from functools import partial

from growth.errors import GrowthError
from growth.family import Dim, Family, TensorSpec
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.families.common.rows import GAIN, READS, WRITES, of

EMBEDDING, LAYER = "model.embed_tokens.weight", "model.layers.{layer}."
FINAL_NORM, HEAD = "model.norm.weight", "lm_head.weight"
QUERY, KEY = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
BIASES = tuple(f"self_attn.{part}_proj.bias" for part in "qkv")


def table(
    name: str,
    *,
    norm_eps: float,
    rope_theta: float,
    scaling: Mapping[str, float] | None = None,
    tied: bool = False,
    biases: bool = False,
    head_norms: bool = False,
) -> Family:
    """The table of a family.

    norm_eps, rope_theta: of a model without a parent. scaling: where rotary frequencies can be scaled (see
    growth.rotary), the scalars of a model without a parent. tied: the head is the embedding. biases: of queries, keys
    and values (Qwen 2). head_norms: queries and keys are normed over the channels of each head (Qwen 3).
    """
    query, key = Dim(("heads", "head_dim"), "query"), Dim(("kv_heads", "head_dim"), "key")
    value = Dim(("kv_heads", "head_dim"), "write")
    of_head = Dim(("head_dim",), "gain")
    words = Dim(("vocab",), "write" if tied else "read")

    def check(sizes: Mapping[str, int]) -> None:
        if sizes["heads"] % sizes["kv_heads"]:
            raise GrowthError(
                f"{name}: heads = {sizes['heads']} is not a multiple of kv_heads = {sizes['kv_heads']}: "
                "every key-value head serves the same number of query heads"
            )
        if sizes["head_dim"] % 2:
            raise GrowthError(f"{name}: head_dim = {sizes['head_dim']} is odd, but rotary embeddings turn pairs")

    return Family(
        name=name,
        tensors=(
            TensorSpec(EMBEDDING, (words, WRITES), "normal"),
            *of(
                ATTENTION,
                TensorSpec(LAYER + "input_layernorm.weight", (GAIN,), "one"),
                TensorSpec(LAYER + "self_attn.q_proj.weight", (query, READS), "normal"),
                TensorSpec(LAYER + "self_attn.k_proj.weight", (key, READS), "normal"),
                TensorSpec(LAYER + "self_attn.v_proj.weight", (value, READS), "normal"),
                *(
                    TensorSpec(LAYER + bias, (out,), "zero")
                    for bias, out in zip(BIASES, (query, key, value), strict=True)
                    if biases
                ),
                *(TensorSpec(LAYER + gain, (of_head,), "one") for gain in (QUERY, KEY) if head_norms),
                TensorSpec(LAYER + "self_attn.o_proj.weight", (WRITES, Dim(("heads", "head_dim"), "read")), "branch"),
            ),
            *of(
                MLP,
                TensorSpec(LAYER + "post_attention_layernorm.weight", (GAIN,), "one"),
                TensorSpec(LAYER + "mlp.gate_proj.weight", (Dim(("ffn",), "gate"), READS), "normal"),
                TensorSpec(LAYER + "mlp.up_proj.weight", (Dim(("ffn",), "write"), READS), "normal"),
                TensorSpec(LAYER + "mlp.down_proj.weight", (WRITES, Dim(("ffn",), "read")), "branch"),
            ),
            TensorSpec(FINAL_NORM, (Dim(("hidden",), "last_gain") if tied else GAIN,), "one"),
            *([] if tied else [TensorSpec(HEAD, (Dim(("vocab",), "write"), READS), "normal")]),
        ),
        kinds=KINDS,
        axes=("vocab", "hidden", "heads", "kv_heads", "head_dim", "ffn"),
        scalars={
            "norm_eps": partial(_constant, norm_eps),
            "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
            "rope_theta": partial(_constant, rope_theta),
            **{scalar: partial(_constant, number) for scalar, number in (scaling or {}).items()},
        },
        norm="rms",
        rule=check,
    )


def _constant(value: float, sizes: Mapping[str, int]) -> float:
    return value


def has(table: Family, row: str) -> bool:
    """Whether a layer of the family has a tensor of this name (without that of the layer)."""
    return any(spec.name == LAYER + row for spec in table.tensors)
