"""LLaMA-2 in Megatron-LM's arguments."""

from pretrain.families.common.arguments import MegatronForm

MEGATRON = MegatronForm(
    fixed={
        "swiglu": (True,),
        "normalization": ("RMSNorm",),
        "position_embedding_type": ("rope",),
        "add_bias_linear": (False,),
        "untie_embeddings_and_output_weights": (True,),
    },
    sizes={},
    scalars={"norm_eps": "norm_epsilon", "rope_theta": "rotary_base"},
    grouped=True,
)
