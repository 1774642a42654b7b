"""GPT-2 on Megatron-core's GPTModel: which logical boxes each parameter holds."""

from __future__ import annotations

from growth.architecture import Architecture
from pretrain.families.common.layernorm_bias.layout import Layer, layer, norm
from pretrain.families.common.tied import tied_head
from pretrain.layout.cuts import Parameter, Place

NAMES = Layer(
    input_norm="ln_1",
    query="attn.q_proj",
    key="attn.k_proj",
    value="attn.v_proj",
    projection="attn.c_proj",
    mlp_norm="ln_2",
    fc1="mlp.c_fc",
    fc2="mlp.c_proj",
)


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The parameters of one chunk, in the order in which Megatron-core registers them."""
    s = arch.sizes
    vocab, positions, hidden = s["vocab"], s["positions"], s["hidden"]
    listed = []
    if place.first:
        listed += [
            place.rows("embedding.word_embeddings.weight", "transformer.wte.weight", (vocab, hidden)),
            place.whole("embedding.position_embeddings.weight", "transformer.wpe.weight", (positions, hidden)),
        ]
    for local, (kind, number) in place.blocks:
        listed += layer(arch, place, kind, f"decoder.layers.{local}.", f"transformer.h.{number}.", NAMES)
    if place.last:
        listed += norm(place, "decoder.final_layernorm", "transformer.ln_f", hidden)
        listed += tied_head(place, "output_layer.weight", "transformer.wte.weight", vocab, hidden)
    return listed
