"""A family that is nowhere but here: what it takes to add one. RMSNorm, rotary embeddings, an MLP with a squared relu
(So et al., 2021, "Primer") and no biases. It has no form in transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.family import Dim, TensorSpec
from growth.family import Family as Table
from pretrain.data.samples import Samples, causal
from pretrain.families.common.reference import Reference, Weights, attention, rotary
from pretrain.families.common.rows import GAIN, READS, WRITES
from pretrain.families.family import Family
from pretrain.layout.cuts import Parameter, Place
from pretrain.losses import NEXT_TOKEN

LAYER = "layers.{layer}."
HEADS = ("heads", "head_dim")
TABLE = Table(
    name="toy",
    tensors=(
        TensorSpec("embedding", (Dim(("vocab",), "read"), WRITES), "normal"),
        TensorSpec(LAYER + "attention_norm", (GAIN,), "one"),
        TensorSpec(LAYER + "q", (Dim(HEADS, "query"), READS), "normal"),
        TensorSpec(LAYER + "k", (Dim(HEADS, "key"), READS), "normal"),
        TensorSpec(LAYER + "v", (Dim(HEADS, "write"), READS), "normal"),
        TensorSpec(LAYER + "o", (WRITES, Dim(HEADS, "read")), "branch"),
        TensorSpec(LAYER + "mlp_norm", (GAIN,), "one"),
        TensorSpec(LAYER + "up", (Dim(("ffn",), "write"), READS), "normal"),
        TensorSpec(LAYER + "down", (WRITES, Dim(("ffn",), "read")), "branch"),
        TensorSpec("norm", (GAIN,), "one"),
        TensorSpec("head", (Dim(("vocab",), "write"), READS), "normal"),
    ),
    axes=("vocab", "hidden", "heads", "head_dim", "ffn"),
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
        "rope_theta": lambda sizes: 10_000.0,
    },
)


def _norm(weight: Weights, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
    eps = weight.arch.scalars["norm_eps"]
    return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)


def _attention(weight: Weights, i: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    h_BSD = _norm(weight, x_BSD, f"layers.{i}.attention_norm")
    q, k, v = (h_BSD @ weight(f"layers.{i}.{p}").T for p in "qkv")
    turn = rotary(weight.arch, x_BSD, samples)
    mixed = attention(weight.arch, q, k, v, causal=True, turn=turn, samples=samples)
    return mixed @ weight(f"layers.{i}.o").T


def _mlp(weight: Weights, i: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    h = F.relu(_norm(weight, x_BSD, f"layers.{i}.mlp_norm") @ weight(f"layers.{i}.up").T).square()
    return h @ weight(f"layers.{i}.down").T


REFERENCE = Reference(
    embed=lambda weight, samples: weight("embedding")[samples["inputs"]],
    sublayers={TABLE.kinds[0]: (_attention, _mlp)},
    head=lambda weight, x_BSD: {"words": _norm(weight, x_BSD, "norm") @ weight("head").T},
)
"""The reference model."""


def parameters(arch: Architecture, place: Place) -> list[Parameter]:
    """The layout: the parameters of one chunk, in Megatron-core's order."""
    vocab, hidden, heads, size, ffn = (arch.sizes[axis] for axis in TABLE.axes)
    made = [place.rows("embedding.word_embeddings.weight", "embedding", (vocab, hidden))] if place.first else []
    for local, (_, number) in place.blocks:
        to, of = f"decoder.layers.{local}.", f"layers.{number}."
        made += [
            place.whole(f"{to}input_layernorm.weight", f"{of}attention_norm", (hidden,)),
            place.columns(f"{to}self_attention.linear_proj.weight", f"{of}o", (hidden, heads * size)),
            place.qkv(
                f"{to}self_attention.linear_qkv.weight", (f"{of}q", f"{of}k", f"{of}v"), heads, heads, size, hidden
            ),
            place.whole(f"{to}pre_mlp_layernorm.weight", f"{of}mlp_norm", (hidden,)),
            place.rows(f"{to}mlp.linear_fc1.weight", f"{of}up", (ffn, hidden)),
            place.columns(f"{to}mlp.linear_fc2.weight", f"{of}down", (hidden, ffn)),
        ]
    if place.last:
        made.append(place.whole("decoder.final_layernorm.weight", "norm", (hidden,)))
        made.append(place.rows("output_layer.weight", "head", (vocab, hidden)))
    return made


TOY = Family(
    table=TABLE,
    losses=(NEXT_TOKEN,),
    samples=causal,
    ahead=1,
    reference=REFERENCE,
    layout=parameters,
    model_module="tests.toy.model",
    text_module="pretrain.families.common.text",
)
