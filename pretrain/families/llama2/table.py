"""LLaMA-2 (Touvron et al., 2023): pre-norm, RMSNorm, SwiGLU, RoPE, grouped-query attention, no biases, untied."""

from collections.abc import Mapping
from dataclasses import replace

from growth.errors import GrowthError
from growth.family import Dim, Family, TensorSpec
from pretrain.families.common.rows import GAIN, READS, WRITES

LAYER = "model.layers.{layer}."


def _check(sizes: Mapping[str, int]) -> None:
    if sizes["heads"] % sizes["kv_heads"]:
        raise GrowthError(
            f"llama2: heads = {sizes['heads']} is not a multiple of kv_heads = {sizes['kv_heads']}: "
            "every key-value head serves the same number of query heads"
        )
    if sizes["head_dim"] % 2:
        raise GrowthError(f"llama2: head_dim = {sizes['head_dim']} is odd, but rotary embeddings turn pairs")


LLAMA2 = Family(
    name="llama2",
    tensors=(
        TensorSpec("model.embed_tokens.weight", (Dim(("vocab",), "read"), WRITES), "normal"),
        TensorSpec(LAYER + "input_layernorm.weight", (GAIN,), "one"),
        TensorSpec(LAYER + "self_attn.q_proj.weight", (Dim(("heads", "head_dim"), "query"), READS), "normal"),
        TensorSpec(LAYER + "self_attn.k_proj.weight", (Dim(("kv_heads", "head_dim"), "key"), READS), "normal"),
        TensorSpec(LAYER + "self_attn.v_proj.weight", (Dim(("kv_heads", "head_dim"), "write"), READS), "normal"),
        TensorSpec(LAYER + "self_attn.o_proj.weight", (WRITES, Dim(("heads", "head_dim"), "read")), "branch"),
        TensorSpec(LAYER + "post_attention_layernorm.weight", (GAIN,), "one"),
        TensorSpec(LAYER + "mlp.gate_proj.weight", (Dim(("ffn",), "gate"), READS), "normal"),
        TensorSpec(LAYER + "mlp.up_proj.weight", (Dim(("ffn",), "write"), READS), "normal"),
        TensorSpec(LAYER + "mlp.down_proj.weight", (WRITES, Dim(("ffn",), "read")), "branch"),
        TensorSpec("model.norm.weight", (GAIN,), "one"),
        TensorSpec("lm_head.weight", (Dim(("vocab",), "write"), READS), "normal"),
    ),
    axes=("vocab", "hidden", "heads", "kv_heads", "head_dim", "ffn"),
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
        "rope_theta": lambda sizes: 10_000.0,
    },
    norm="rms",
    rule=_check,
)

# Every layer's weights serve `repeats` layers in a row (cross-layer sharing: Dehghani et al., 2019; Lan et al., 2020).
LLAMA2_SHARED = replace(LLAMA2, name="llama2_shared", scalars={**LLAMA2.scalars, "repeats": lambda sizes: 1.0})
