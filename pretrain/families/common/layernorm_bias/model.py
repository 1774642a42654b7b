"""What GPT-2 and BERT share."""

from __future__ import annotations

from growth.architecture import Architecture


def config_fields(arch: Architecture) -> dict[str, object]:
    """The part of Megatron's TransformerConfig that the architecture decides, but for the activation."""
    s = arch.sizes
    return {
        "num_layers": arch.depth,
        "hidden_size": s["hidden"],
        "num_attention_heads": s["heads"],
        "kv_channels": s["head_dim"],
        "ffn_hidden_size": s["ffn"],
        "layernorm_epsilon": arch.scalars["norm_eps"],
        "softmax_scale": arch.scalars["softmax_scale"],
        "normalization": "LayerNorm",
        "bias_activation_fusion": False,
        "add_bias_linear": True,
    }
