"""A decoder in Megatron-LM's arguments."""

from growth.family import Family as Table
from growth.rotary import SCALING
from pretrain.families.common.arguments import MegatronForm
from pretrain.families.common.decoder.table import BIASES, has


def megatron(table: Table) -> MegatronForm:
    """The form of a table. Of Llama 3.1's scaled frequencies Megatron-LM has the factor as an argument, and the other
    numbers as they were published."""
    scaled = SCALING[0] in table.scalars
    return MegatronForm(
        fixed={
            "swiglu": (True,),
            "normalization": ("RMSNorm",),
            "position_embedding_type": ("rope",),
            "add_bias_linear": (False,),
            "untie_embeddings_and_output_weights": (not table.tied,),
            "add_qkv_bias": (has(table, BIASES[0]),),
            "qk_layernorm": (table.head_norms,),
            "use_rope_scaling": (scaled,),
        },
        sizes={},
        scalars={
            "norm_eps": "norm_epsilon",
            "rope_theta": "rotary_base",
            **({SCALING[0]: "rope_scaling_factor"} if scaled else {}),
        },
        constants=dict(zip(SCALING[1:], (1.0, 4.0, 8192.0), strict=True)) if scaled else {},
        grouped=True,
    )
