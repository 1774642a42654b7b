"""BERT on Megatron-core's BertModel: which logical boxes each parameter holds."""

from __future__ import annotations

from growth.architecture import Architecture
from pretrain.families.common.layernorm_bias.layout import Layer, layer, norm, whole_linear
from pretrain.families.common.tied import tied_head
from pretrain.layout.cuts import Parameter, Place

NAMES = Layer(
    input_norm="attention.ln",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    projection="attention.output.dense",
    mlp_norm="ln",
    fc1="intermediate.dense",
    fc2="output.dense",
)
EMBEDDINGS = "bert.embeddings."
TRANSFORM = "cls.predictions.transform."


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The parameters of one chunk, in the order in which Megatron-core registers them."""
    s = arch.sizes
    vocab, hidden = s["vocab"], s["hidden"]
    words = f"{EMBEDDINGS}word_embeddings.weight"
    listed = []
    if place.first:
        listed.append(place.rows("embedding.word_embeddings.weight", words, (vocab, hidden)))
        for name, tensor, axis in (("position", "position", "positions"), ("tokentype", "token_type", "types")):
            to, of = f"embedding.{name}_embeddings.weight", f"{EMBEDDINGS}{tensor}_embeddings.weight"
            listed.append(place.whole(to, of, (s[axis], hidden)))
    for local, (kind, number) in place.blocks:
        listed += layer(arch, place, kind, f"encoder.layers.{local}.", f"bert.encoder.layer.{number}.", NAMES)
    if place.last:
        listed += norm(place, "encoder.final_layernorm", "bert.encoder.ln", hidden)
        listed += whole_linear(place, "lm_head.dense", f"{TRANSFORM}dense", hidden, hidden)
        listed += norm(place, "lm_head.layer_norm", f"{TRANSFORM}LayerNorm", hidden)
        listed += tied_head(place, "output_layer.weight", words, vocab, hidden)
        listed.append(place.rows("output_layer.bias", "cls.predictions.bias", (vocab,)))
        listed += whole_linear(place, "binary_head", "cls.seq_relationship", s["labels"], hidden)
        listed += whole_linear(place, "pooler.dense", "bert.pooler.dense", hidden, hidden)
    return listed
