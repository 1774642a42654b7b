"""One name for each parameter, that of Megatron-core's own layers, whatever the version that wrote a checkpoint."""

from __future__ import annotations

import re

IGNORED = re.compile(r"(^|\.)(_extra_state.*|rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|inv_freq)$")
"""What says nothing of the model: states of fp8 recipes, and frequencies that follow from an argument."""

_PREFIXES = re.compile(r"^(module\.|model\.|language_model\.)+")
_PARTS = (
    (r"^(encoder|transformer)\.", "decoder."),
    (r"^word_embeddings_for_head\.", "output_layer."),
    (r"^word_embeddings\.", "embedding.word_embeddings."),
    (r"^position_embeddings\.", "embedding.position_embeddings."),
    (r"final_norm\.", "final_layernorm."),
    (r"\.self_attention\.linear_qkv\.layer_norm_(weight|bias)$", r".input_layernorm.\1"),
    (r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\1"),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.(post_attention_layernorm|post_attention_norm)\.", ".pre_mlp_layernorm."),
    (r"\.attention\.", ".self_attention."),
    (r"\.self_attention\.query_key_value\.", ".self_attention.linear_qkv."),
    (r"\.self_attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
)


def canonical(name: str) -> str:
    """The name of a parameter as a layout has it: `decoder.layers.0.self_attention.linear_qkv.weight`.

    Megatron-LM's legacy models have query_key_value and dense_h_to_4h, Transformer Engine's layers have the norm as a
    part of the linear behind it.
    """
    name = _PREFIXES.sub("", name)
    for pattern, word in _PARTS:
        name = re.sub(pattern, word, name)
    return name


def fused(name: str) -> str:
    """The name in torch_dist of a parameter of ours: a norm has that of the linear behind it."""
    name = re.sub(r"\.input_layernorm\.(weight|bias)$", r".self_attention.linear_qkv.layer_norm_\1", name)
    return re.sub(r"\.pre_mlp_layernorm\.(weight|bias)$", r".mlp.linear_fc1.layer_norm_\1", name)


_LAYER = re.compile(r"(?<=\blayers\.)(\d+)\.")


def layer_of(name: str) -> int | None:
    """The number of the layer in a name."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def without_layer(name: str) -> str:
    """The name that all layers have in common, under which a checkpoint in torch_dist stacks them."""
    return _LAYER.sub("", name, count=1)
