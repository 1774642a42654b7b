"""LLaMA-2 (Touvron et al., 2023): pre-norm, RMSNorm, SwiGLU, RoPE, grouped-query attention, no biases, untied."""

from collections.abc import Mapping

from growth.errors import GrowthError
from growth.family import Dim, Family, TensorSpec
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.families.common.rows import GAIN, READS, WRITES, of

LAYER = "model.layers.{layer}."


def _check(sizes: Mapping[str, int]) -> None:
    if sizes["heads"] % sizes["kv_heads"]:
        raise GrowthError(
            f"llama2: heads = {sizes['heads']} is not a multiple of kv_heads = {sizes['kv_heads']}: "
            "every key-value head serves the same number of query heads"
        )
    if sizes["head_dim"] % 2:
        raise GrowthError(f"llama2: head_dim = {sizes['head_dim']} is odd, but rotary embeddings turn pairs")


TABLE = Family(
    name="llama2",
    tensors=(
        TensorSpec("model.embed_tokens.weight", (Dim(("vocab",), "read"), WRITES), "normal"),
        *of(
            ATTENTION,
            TensorSpec(LAYER + "input_layernorm.weight", (GAIN,), "one"),
            TensorSpec(LAYER + "self_attn.q_proj.weight", (Dim(("heads", "head_dim"), "query"), READS), "normal"),
            TensorSpec(LAYER + "self_attn.k_proj.weight", (Dim(("kv_heads", "head_dim"), "key"), READS), "normal"),
            TensorSpec(LAYER + "self_attn.v_proj.weight", (Dim(("kv_heads", "head_dim"), "write"), READS), "normal"),
            TensorSpec(LAYER + "self_attn.o_proj.weight", (WRITES, Dim(("heads", "head_dim"), "read")), "branch"),
        ),
        *of(
            MLP,
            TensorSpec(LAYER + "post_attention_layernorm.weight", (GAIN,), "one"),
            TensorSpec(LAYER + "mlp.gate_proj.weight", (Dim(("ffn",), "gate"), READS), "normal"),
            TensorSpec(LAYER + "mlp.up_proj.weight", (Dim(("ffn",), "write"), READS), "normal"),
            TensorSpec(LAYER + "mlp.down_proj.weight", (WRITES, Dim(("ffn",), "read")), "branch"),
        ),
        TensorSpec("model.norm.weight", (GAIN,), "one"),
        TensorSpec("lm_head.weight", (Dim(("vocab",), "write"), READS), "normal"),
    ),
    kinds=KINDS,
    axes=("vocab", "hidden", "heads", "kv_heads", "head_dim", "ffn"),
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
        "rope_theta": lambda sizes: 10_000.0,
    },
    norm="rms",
    rule=_check,
)
