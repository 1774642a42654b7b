"""GPT-2 (Radford et al., 2019): pre-norm, LayerNorm, gelu, learned positions, biases, head tied to the embedding.

Hugging Face's names, but for queries, keys and values: its one fused matrix is three logical tensors.
"""

from growth.family import Dim, Family, TensorSpec
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.families.common.rows import READS, WRITES, layer_norm, linear, of

LAYER = "transformer.h.{layer}."

TABLE = Family(
    name="gpt2",
    tensors=(
        TensorSpec("transformer.wte.weight", (Dim(("vocab",), "write"), WRITES), "normal"),
        TensorSpec("transformer.wpe.weight", (Dim(("positions",), "read"), WRITES), "normal"),
        *of(
            ATTENTION,
            *layer_norm(LAYER + "ln_1"),
            *linear(LAYER + "attn.q_proj", Dim(("heads", "head_dim"), "query"), READS),
            *linear(LAYER + "attn.k_proj", Dim(("heads", "head_dim"), "key"), READS),
            *linear(LAYER + "attn.v_proj", Dim(("heads", "head_dim"), "write"), READS),
            *linear(LAYER + "attn.c_proj", WRITES, Dim(("heads", "head_dim"), "read"), "branch"),
        ),
        *of(
            MLP,
            *layer_norm(LAYER + "ln_2"),
            *linear(LAYER + "mlp.c_fc", Dim(("ffn",), "write"), READS),
            *linear(LAYER + "mlp.c_proj", WRITES, Dim(("ffn",), "read"), "branch"),
        ),
        *layer_norm("transformer.ln_f", Dim(("hidden",), "last_gain"), Dim(("hidden",), "last_shift")),
    ),
    kinds=KINDS,
    axes=("vocab", "positions", "hidden", "heads", "head_dim", "ffn"),
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
    },
    norm="layer",
)
