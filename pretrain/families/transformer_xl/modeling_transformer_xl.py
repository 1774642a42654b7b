"""Transformer-XL for transformers, which has no class for it: this file goes with a model that is exported, and is run
by `from_pretrained(..., trust_remote_code=True)`. It needs nothing but torch and transformers.

Where `config.order` has a letter for each layer, s is a layer of attention alone and f of an MLP alone. Shape suffixes:
B batch, S new tokens, K all tokens, D hidden, C channels of the sinusoid, N heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class TransformerXLConfig(PreTrainedConfig):
    """Keys as those of the paper's code. d_sinusoid: channels of the embedding of a distance."""

    model_type = "cambium_transformer_xl"
    attribute_map: ClassVar = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    vocab_size: int = 1
    d_model: int = 2
    d_sinusoid: int = 2
    d_inner: int = 1
    d_head: int = 1
    n_head: int = 1
    n_layer: int = 1
    layer_norm_epsilon: float = 1e-5
    softmax_scale: float = 1.0
    order: str = ""


def norm(config: Any) -> nn.Module:
    return nn.LayerNorm(config.d_model, config.layer_norm_epsilon)


def sinusoid(keys: int, channels: int, device: torch.device) -> Tensor:
    """r of the distances from keys - 1 down to -1, in fp64: [keys + 1, C]."""
    distance = torch.arange(keys - 1, -2, -1, dtype=torch.float64, device=device)
    angle = distance[:, None] / 10_000 ** (torch.arange(0, channels, 2, device=device) / channels).double()
    return torch.cat((angle.sin(), angle.cos()), -1)


class Attention(nn.Module):
    """number: of this among the layers with attention, its place in a cache."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.number, self.heads, self.scale = number, config.n_head, config.softmax_scale
        wide = config.n_head * config.d_head
        self.layer_norm = norm(config)
        self.q_net, self.k_net, self.v_net = (nn.Linear(config.d_model, wide, bias=False) for _ in "qkv")
        self.r_net = nn.Linear(config.d_sinusoid, wide, bias=False)
        self.o_net = nn.Linear(wide, config.d_model, bias=False)
        self.r_w_bias, self.r_r_bias = (nn.Parameter(torch.zeros(wide)) for _ in range(2))

    def _of_heads(self, x: Tensor) -> Tensor:
        """[..., S, N * H] -> [..., N, S, H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def forward(self, x_BSD: Tensor, r_KC: Tensor, seen_BSK: Tensor, cache: Any) -> Tensor:
        h_BSD = self.layer_norm(x_BSD)
        q, k, v = self.q_net(h_BSD), self._of_heads(self.k_net(h_BSD)), self._of_heads(self.v_net(h_BSD))
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        queries, keys = q.shape[1], k.shape[2]
        by_distance = self._of_heads(q + self.r_r_bias) @ self._of_heads(self.r_net(r_KC)).transpose(-1, -2)
        # Row i begins S - 1 - i columns later, and is one shorter than it was: what is left lies end to end.
        shifted = by_distance.flatten(2)[..., queries - 1 :][..., : queries * keys].unflatten(-1, (queries, keys))
        scores = (self._of_heads(q + self.r_w_bias) @ k.transpose(-1, -2) + shifted) * self.scale
        weights = scores.masked_fill(~seen_BSK[:, None], -torch.inf).softmax(-1)
        return x_BSD + self.o_net((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm = norm(config)
        self.fc1, self.fc2 = nn.Linear(config.d_model, config.d_inner), nn.Linear(config.d_inner, config.d_model)

    def forward(self, x_BSD: Tensor, *_: Any) -> Tensor:
        return x_BSD + self.fc2(F.relu(self.fc1(self.layer_norm(x_BSD))))


class TransformerXLLMHeadModel(PreTrainedModel, GenerationMixin):
    """A language model whose head is its embedding. It takes token ids, a mask of padding and a cache as every such
    model of transformers does."""

    config_class = TransformerXLConfig
    base_model_prefix = "transformer"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers = []
        for i, letters in enumerate(config.order or ["sf"] * config.n_layer):
            number = config.order[:i].count("s") if config.order else i
            parts = {"s": ("dec_attn", Attention(config, number)), "f": ("pos_ff", MLP(config))}
            layers.append(nn.ModuleDict(dict(parts[letter] for letter in letters)))
        self.transformer = nn.ModuleDict(
            {
                "word_emb": nn.Embedding(config.vocab_size, config.d_model),
                "layers": nn.ModuleList(layers),
                "ln_f": norm(config),
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["word_emb"]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """The logits [B, S, vocabulary] after each new token; with labels [B, S], which are not shifted yet, the loss.

        attention_mask [B, K]: 0 where there is padding.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        key = torch.arange(past + input_ids.shape[1], device=input_ids.device)
        query = key[past:]
        seen_BSK = (key <= query[:, None])[None]
        if attention_mask is not None:  # a token always sees itself, so that padding has no empty row
            seen_BSK = (seen_BSK & attention_mask.bool()[:, None]) | (key == query[:, None])
        x_BSD = self.transformer["word_emb"](input_ids)
        r_KC = sinusoid(len(key), self.config.d_sinusoid, input_ids.device).to(x_BSD)
        for layer in self.transformer["layers"].children():
            for part in layer.children():
                x_BSD = part(x_BSD, r_KC, seen_BSK, past_key_values)
        logits_BSV = F.linear(self.transformer["ln_f"](x_BSD), self.get_parameter("transformer.word_emb.weight"))
        loss = None if labels is None else F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits_BSV, past_key_values=past_key_values)
