"""A decoder on Megatron-core's GPTModel: which logical boxes each parameter holds."""

from __future__ import annotations

from growth.architecture import Architecture
from pretrain.families.common.decoder.table import BIASES, EMBEDDING, FINAL_NORM, HEAD, KEY, QUERY, has
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.families.common.tied import tied_head
from pretrain.layout.cuts import Parameter, Place
from pretrain.layout.spans import spans


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The parameters of one chunk, in the order in which Megatron-core registers them."""
    s, table = arch.sizes, arch.table
    hidden, heads, groups, head_dim, ffn = (s[axis] for axis in ("hidden", "heads", "kv_heads", "head_dim", "ffn"))
    listed = []
    if place.first:
        listed.append(place.rows("embedding.word_embeddings.weight", EMBEDDING, (s["vocab"], hidden)))
    for local, (kind, layer) in place.blocks:
        to, of = f"decoder.layers.{local}.", f"model.layers.{layer}."
        if kind in ATTENTION:
            q, k, v = (f"{of}self_attn.{x}_proj.weight" for x in "qkv")
            listed += [
                place.whole(f"{to}input_layernorm.weight", f"{of}input_layernorm.weight", (hidden,)),
                *spans(arch, place, to, q),
                place.columns(
                    f"{to}self_attention.linear_proj.weight", f"{of}self_attn.o_proj.weight", (hidden, heads * head_dim)
                ),
                place.qkv(f"{to}self_attention.linear_qkv.weight", (q, k, v), heads, groups, head_dim, hidden),
            ]
            if has(table, BIASES[0]):
                q, k, v = (of + bias for bias in BIASES)
                listed.append(place.qkv(f"{to}self_attention.linear_qkv.bias", (q, k, v), heads, groups, head_dim))
            if table.head_norms:
                norms = {"q_layernorm": QUERY, "k_layernorm": KEY}
                listed += [
                    place.whole(f"{to}self_attention.{name}.weight", of + gain, (head_dim,))
                    for name, gain in norms.items()
                ]
        if kind in MLP:
            gate, up = f"{of}mlp.gate_proj.weight", f"{of}mlp.up_proj.weight"
            listed += [
                place.whole(f"{to}pre_mlp_layernorm.weight", f"{of}post_attention_layernorm.weight", (hidden,)),
                place.gated(f"{to}mlp.linear_fc1.weight", gate, up, ffn, hidden),
                place.columns(f"{to}mlp.linear_fc2.weight", f"{of}mlp.down_proj.weight", (hidden, ffn)),
            ]
    if place.last:
        listed.append(place.whole("decoder.final_layernorm.weight", FINAL_NORM, (hidden,)))
        if table.tied:
            listed += tied_head(place, "output_layer.weight", EMBEDDING, s["vocab"], hidden)
        else:
            listed.append(place.rows("output_layer.weight", HEAD, (s["vocab"], hidden)))
    return listed
