"""Transformer-XL on Megatron-core's GPTModel: which logical boxes each parameter holds."""

from __future__ import annotations

from growth.architecture import Architecture
from growth.family import DISTANCES
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.families.common.layernorm_bias.layout import column_parallel, norm, row_parallel
from pretrain.families.common.tied import tied_head
from pretrain.families.transformer_xl.table import EMBEDDING, FINAL_NORM
from pretrain.layout.cuts import Parameter, Place


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The parameters of one chunk, in the order in which Megatron-core registers them."""
    s = arch.sizes
    vocab, hidden, heads, head_dim, ffn = (s[axis] for axis in ("vocab", "hidden", "heads", "head_dim", "ffn"))
    wide = heads * head_dim
    listed = []
    if place.first:
        listed.append(place.rows("embedding.word_embeddings.weight", EMBEDDING, (vocab, hidden)))
    for local, (kind, number) in place.blocks:
        to, of = f"decoder.layers.{local}.", f"transformer.layers.{number}."
        if kind in ATTENTION:
            core, attention = f"{to}self_attention.core_attention.", f"{of}dec_attn."
            q, k, v = (f"{attention}{x}_net.weight" for x in "qkv")
            listed += [
                *norm(place, f"{to}input_layernorm", f"{attention}layer_norm", hidden),
                *(place.rows(core + bias, attention + bias, (wide,)) for bias in ("r_w_bias", "r_r_bias")),
                place.rows(f"{core}r_net", f"{attention}r_net.weight", (wide, s[DISTANCES])),
                place.columns(f"{to}self_attention.linear_proj.weight", f"{attention}o_net.weight", (hidden, wide)),
                place.qkv(f"{to}self_attention.linear_qkv.weight", (q, k, v), heads, heads, head_dim, hidden),
            ]
        if kind in MLP:
            listed += norm(place, f"{to}pre_mlp_layernorm", f"{of}pos_ff.layer_norm", hidden)
            listed += column_parallel(place, f"{to}mlp.linear_fc1", f"{of}pos_ff.fc1", ffn, hidden)
            listed += row_parallel(place, f"{to}mlp.linear_fc2", f"{of}pos_ff.fc2", hidden, ffn)
    if place.last:
        listed += norm(place, "decoder.final_layernorm", FINAL_NORM, hidden)
        listed += tied_head(place, "output_layer.weight", EMBEDDING, vocab, hidden)
    return listed
