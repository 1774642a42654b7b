"""LLaMA-2 with its sublayers in any order, or with heads that learned how far they see, for transformers: this file
goes with a model that is exported, and is run by `from_pretrained(..., trust_remote_code=True)`. It needs nothing but
torch and transformers.

`config.order` has a letter for each sublayer: s is attention, f an MLP, each with its norm before it and its residual
branch; empty: each layer has both. `config.span` says `max` and `ramp`, in tokens, where heads have spans. Shape
suffixes: B batch, S new positions, K all positions, D hidden, N heads, G key-value heads, H head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class OrderedLlamaConfig(LlamaConfig):
    """Of LLaMA; with an order `num_hidden_layers` is the number of sublayers."""

    model_type = "cambium_llama2"
    order: str = ""
    span: dict[str, int] | None = None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        return F.rms_norm(x_BSD, x_BSD.shape[-1:], self.weight, self.eps)


def angles(config: Any, position_BS: Tensor) -> Tensor:
    """[B, S, H / 2]: by how much each pair of channels of a head turns at a position, in fp64."""
    rope, pairs = config.rope_parameters, config.head_dim // 2
    frequency = rope["rope_theta"] ** (-torch.arange(pairs, dtype=torch.float64, device=position_BS.device) / pairs)
    if rope.get("rope_type") == "longrope":  # how a table of frequencies is written down: divisors of the usual ones
        frequency = frequency / frequency.new_tensor(rope["short_factor"])
    return position_BS[..., None] * frequency


def turned(x_BSNH: Tensor, angle_BSP: Tensor) -> Tensor:
    """Channels p and p + H / 2 of each head turned together by angle p."""
    cos, sin = (part.repeat(1, 1, 2)[:, :, None].to(x_BSNH) for part in (angle_BSP.cos(), angle_BSP.sin()))
    first, second = x_BSNH.chunk(2, dim=-1)
    return x_BSNH * cos + torch.cat((-second, first), dim=-1) * sin


def faded(seen_BSK: Tensor, span_N: Tensor, within: dict[str, int]) -> Tensor:
    """[B, N, S, K]: what a score has beside it where heads have spans, the logarithm of
    clip((ramp + z - distance) / ramp, 0, 1), or of 0 where nothing is seen. span_N: z / max. within: ramp and max."""
    new, whole = seen_BSK.shape[1:]
    place = torch.arange(whole, device=span_N.device)
    distance_SK = place[whole - new :, None] - place
    z_N11 = span_N.float()[:, None, None] * within["max"]
    mask_NSK = ((within["ramp"] + z_N11 - distance_SK) / within["ramp"]).clamp(0, 1)
    return mask_NSK.log().masked_fill(~seen_BSK[:, None], -torch.inf)


class Attention(nn.Module):
    """number: of this among the attention sublayers, its place in a cache."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.number, self.head_dim, self.span = number, config.head_dim, config.span
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        heads, groups = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        wide = {"q_proj": heads, "k_proj": groups, "v_proj": groups}
        parts = {name: nn.Linear(config.hidden_size, width, bias=False) for name, width in wide.items()}
        self.self_attn = nn.ModuleDict({**parts, "o_proj": nn.Linear(heads, config.hidden_size, bias=False)})
        if self.span:
            self.self_attn.register_parameter("span", nn.Parameter(torch.zeros(config.num_attention_heads)))

    def forward(self, x_BSD: Tensor, angle_BSP: Tensor, seen_BSK: Tensor, cache: Any) -> Tensor:
        h_BSD = self.input_layernorm(x_BSD)
        q, k, v = (self.self_attn[f"{p}_proj"](h_BSD).unflatten(-1, (-1, self.head_dim)) for p in "qkv")
        q, k, v = (x.transpose(1, 2) for x in (turned(q, angle_BSP), turned(k, angle_BSP), v))
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        mask = seen_BSK[:, None]
        if self.span:
            mask = faded(seen_BSK, self.get_parameter("self_attn.span"), self.span).to(q)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return x_BSD + self.self_attn["o_proj"](out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        width, inner = config.hidden_size, config.intermediate_size
        parts = {name: nn.Linear(width, inner, bias=False) for name in ("gate_proj", "up_proj")}
        self.mlp = nn.ModuleDict({**parts, "down_proj": nn.Linear(inner, width, bias=False)})

    def forward(self, x_BSD: Tensor, *_: Any) -> Tensor:
        h_BSD = self.post_attention_layernorm(x_BSD)
        return x_BSD + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h_BSD)) * self.mlp["up_proj"](h_BSD))


class Layer(nn.Module):
    """Attention and an MLP in one layer of the model, beside each other."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.parts = Attention(config, number), MLP(config)  # a tuple, so that names of tensors do not have it
        for part in self.parts:
            for name, child in part.named_children():
                self.add_module(name, child)

    def forward(self, x_BSD: Tensor, *how: Any) -> Tensor:
        for part in self.parts:
            x_BSD = part(x_BSD, *how)
        return x_BSD


class OrderedLlamaForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model. It takes token ids, a mask of padding and a cache as every such model of transformers does."""

    config_class = OrderedLlamaConfig
    base_model_prefix = "model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [
            Attention(config, config.order[:i].count("s")) if letter == "s" else MLP(config)
            for i, letter in enumerate(config.order)
        ] or [Layer(config, i) for i in range(config.num_hidden_layers)]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(layers),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model["embed_tokens"]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
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
        query = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        key = torch.arange(past + input_ids.shape[1], device=input_ids.device)
        position_BS = query[None] if position_ids is None else position_ids
        seen_BSK = (key <= query[:, None])[None]
        if attention_mask is not None:  # a token always sees itself, so that padding has no empty row
            seen_BSK = (seen_BSK & attention_mask.bool()[:, None]) | (key == query[:, None])
        angle_BSP = angles(self.config, position_BS)
        x_BSD = self.model["embed_tokens"](input_ids)
        for layer in self.model["layers"].children():
            x_BSD = layer(x_BSD, angle_BSP, seen_BSK, past_key_values)
        logits_BSV = self.lm_head(self.model["norm"](x_BSD))
        loss = None if labels is None else F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits_BSV, past_key_values=past_key_values)
