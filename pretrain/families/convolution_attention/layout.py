"""Convolution Attention on Megatron-core's GPTModel: which logical boxes each parameter holds."""

from __future__ import annotations

from growth.architecture import Architecture
from pretrain.families.convolution_attention.table import BLOCKS, COMPRESSORS, EMBEDDING, HEAD, NORM, POSITIONS
from pretrain.layout.cuts import Parameter, Place


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The parameters of one chunk, in the order in which Megatron-core registers them."""
    s = arch.sizes
    vocab, hidden = s["vocab"], s["hidden"]
    listed = []
    if place.first:
        listed += [
            place.rows("embedding.word_embeddings.weight", EMBEDDING, (vocab, hidden)),
            place.whole("embedding.position_embeddings.weight", POSITIONS, (s["positions"], hidden)),
        ]
    for local, (kind, number) in place.blocks:
        to, of = f"decoder.layers.{local}.", f"layers.{number}."
        if kind in BLOCKS:
            listed += _block(arch, place, arch.table.through(kind)[0].width, to, of)
        else:  # a row-parallel matrix, cut along the channels that it takes
            part = "compress" if kind in COMPRESSORS else "expand"
            matrix = arch.tensor(f"{of}{part}.weight")
            listed.append(place.columns(f"{to}linear.weight", matrix.name, (matrix.shape[0], matrix.shape[1])))
    if place.last:
        listed.append(place.whole("decoder.final_layernorm.weight", NORM, (hidden,)))
        listed.append(place.rows("output_layer.weight", HEAD, (vocab, hidden)))
    return listed


def _block(arch: Architecture, place: Place, width: int, to: str, of: str) -> list[Parameter]:
    """One block of a level that is so many times as wide as the first."""
    hidden, head_dim, ffn = (width * arch.sizes[axis] for axis in ("hidden", "head_dim", "ffn"))
    heads = arch.sizes["heads"]
    q, k, v = (f"{of}attention.{part}.weight" for part in ("query", "key", "value"))
    return [
        place.whole(f"{to}input_layernorm.weight", f"{of}attention_norm.weight", (hidden,)),
        place.columns(
            f"{to}self_attention.linear_proj.weight", f"{of}attention.out.weight", (hidden, heads * head_dim)
        ),
        place.qkv(f"{to}self_attention.linear_qkv.weight", (q, k, v), heads, heads, head_dim, hidden),
        place.whole(f"{to}pre_mlp_layernorm.weight", f"{of}mlp_norm.weight", (hidden,)),
        place.rows(f"{to}mlp.linear_fc1.weight", f"{of}mlp.up.weight", (ffn, hidden)),
        place.columns(f"{to}mlp.linear_fc2.weight", f"{of}mlp.down.weight", (hidden, ffn)),
    ]
