"""GPT-2 in Megatron-LM's arguments."""

from pretrain.families.common.arguments import MegatronForm

MEGATRON = MegatronForm(
    fixed={
        "swiglu": (False,),
        "squared_relu": (False,),
        "quick_geglu": (False,),
        "gelu": ("tanh",),
        "normalization": ("LayerNorm",),
        "position_embedding_type": ("learned_absolute",),
        "add_bias_linear": (True,),
        "untie_embeddings_and_output_weights": (False,),
    },
    sizes={"positions": "max_position_embeddings"},
    scalars={"norm_eps": "norm_epsilon"},
)
