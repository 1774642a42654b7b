"""Transformer-XL on logical tensors. Shape suffixes as in pretrain.families.common.reference, K keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.family import DISTANCES
from pretrain.data.samples import Samples
from pretrain.families.common.reference import Reference, Remembering, Weights, attention, by_kind
from pretrain.families.transformer_xl.distances import sinusoid
from pretrain.families.transformer_xl.table import EMBEDDING, FINAL_NORM
from pretrain.losses import Outputs


def _embed(weight: Weights, samples: Samples) -> torch.Tensor:
    return weight.kept(EMBEDDING)[samples["inputs"]]


def _attention(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer, sizes = f"transformer.layers.{number}.dec_attn.", weight.arch.sizes
    seen_BTD = samples.behind(x_BSD) if isinstance(samples, Remembering) else x_BSD
    h_BTD = weight.layer_norm(seen_BTD, layer + "layer_norm")
    q, k, v = (h_BTD @ weight(f"{layer}{p}_net.weight").T for p in "qkv")
    q = q[:, -x_BSD.shape[1] :]
    from_distance = (q + weight(layer + "r_r_bias")).unflatten(-1, (sizes["heads"], -1))

    def of_distances(keys: int) -> torch.Tensor:
        """(q_i + v) . W_R r_(i - j), [B, N, S, K]; of what lies ahead that of distance 0, which nobody sees."""
        r_KC = sinusoid(torch.arange(keys), sizes[DISTANCES]).to(q)
        r_KNH = (r_KC @ weight(layer + "r_net.weight").T).unflatten(-1, (sizes["heads"], -1))
        by_distance = torch.einsum("bsnh,knh->bnsk", from_distance, r_KNH)
        place = torch.arange(keys)
        distance = (place[-q.shape[1] :, None] - place).clamp(min=0)
        return by_distance.gather(-1, distance.expand_as(by_distance))

    from_key = q + weight(layer + "r_w_bias")
    mixed = attention(weight.arch, from_key, k, v, causal=True, samples=samples, beside=of_distances)
    return mixed @ weight(layer + "o_net.weight").T


def _mlp(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"transformer.layers.{number}.pos_ff."
    h_BSD = weight.layer_norm(x_BSD, layer + "layer_norm")
    return weight.linear(F.relu(weight.linear(h_BSD, layer + "fc1")), layer + "fc2")


def _head(weight: Weights, x_BSD: torch.Tensor) -> Outputs:
    """The logits of the words, [B, S, V]."""
    return {"words": weight.layer_norm(x_BSD, FINAL_NORM) @ weight.kept(EMBEDDING).T}


REFERENCE = Reference(_embed, by_kind(_attention, _mlp), _head)
