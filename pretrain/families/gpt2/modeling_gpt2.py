"""GPT-2 with its sublayers in any order, or with heads that learned how far they see, for transformers: this file goes
with a model that is exported, and is run by `from_pretrained(..., trust_remote_code=True)`. It needs nothing but torch
and transformers.

`config.order` has a letter for each sublayer: s is attention, f an MLP, each with its norm before it and its residual
branch; empty: each layer has both. `config.span` says `max` and `ramp`, in tokens, where heads have spans. Shape
suffixes: B batch, S new positions, K all positions, D hidden, N heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, GPT2Config, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class OrderedGPT2Config(GPT2Config):
    """Of GPT-2; with an order `n_layer` is the number of sublayers."""

    model_type = "cambium_gpt2"
    order: str = ""
    span: dict[str, int] | None = None


def linears(widths: dict[str, tuple[int, int]]) -> nn.ModuleDict:
    """Linear layers with biases, by name."""
    return nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})


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
        self.number, self.heads, self.span = number, config.n_head, config.span
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        names = ("q_proj", "k_proj", "v_proj", "c_proj")
        self.attn = linears(dict.fromkeys(names, (config.n_embd, config.n_embd)))
        if self.span:
            self.attn.register_parameter("span", nn.Parameter(torch.zeros(config.n_head)))

    def forward(self, x_BSD: Tensor, seen_BSK: Tensor, cache: Any) -> Tensor:
        h_BSD = self.ln_1(x_BSD)
        q, k, v = (self.attn[f"{p}_proj"](h_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in "qkv")
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        mask = seen_BSK[:, None]
        if self.span:
            mask = faded(seen_BSK, self.get_parameter("attn.span"), self.span).to(q)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x_BSD + self.attn["c_proj"](out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        inner = config.n_inner
        self.mlp = linears({"c_fc": (config.n_embd, inner), "c_proj": (inner, config.n_embd)})

    def forward(self, x_BSD: Tensor, *_: Any) -> Tensor:
        return x_BSD + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x_BSD)), approximate="tanh"))


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


class OrderedGPT2LMHeadModel(PreTrainedModel, GenerationMixin):
    """A language model whose head is its embedding. It takes token ids, a mask of padding and a cache as every such
    model of transformers does."""

    config_class = OrderedGPT2Config
    base_model_prefix = "transformer"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [
            Attention(config, config.order[:i].count("s")) if letter == "s" else MLP(config)
            for i, letter in enumerate(config.order)
        ] or [Layer(config, i) for i in range(config.n_layer)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "h": nn.ModuleList(layers),
                "ln_f": nn.LayerNorm(config.n_embd, config.layer_norm_epsilon),
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer["wte"]

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
        x_BSD = self.transformer["wte"](input_ids) + self.transformer["wpe"](position_BS)
        for layer in self.transformer["h"].children():
            x_BSD = layer(x_BSD, seen_BSK, past_key_values)
        logits_BSV = F.linear(self.transformer["ln_f"](x_BSD), self.get_parameter("transformer.wte.weight"))
        loss = None if labels is None else F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits_BSV, past_key_values=past_key_values)
