"""Convolution Attention for transformers: this file goes with a model that is exported, and is run by
`from_pretrained(..., trust_remote_code=True)`. It needs nothing but torch and transformers.

The logits at a place are of the token that is a unit ahead of it: as many places as the longest unit of the model has
tokens (`unit`, 64 with three compressors). Shape suffixes: B batch, S units of a level, D its width, N heads, H width
of a head, V vocabulary, T tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import CausalLMOutput

TAPS = 4


class ConvolutionAttentionConfig(PretrainedConfig):
    """`levels` are the blocks before, between and behind the compressors and then the expanders."""

    model_type = "cambium_convolution_attention"

    def __init__(
        self,
        vocab_size: int = 32000,
        max_position_embeddings: int = 1024,
        hidden_size: int = 48,
        num_attention_heads: int = 6,
        head_dim: int = 8,
        intermediate_size: int = 192,
        levels: Sequence[int] = (1, 2, 2, 2, 2, 2, 1),
        rms_norm_eps: float = 1e-5,
        softmax_scale: float = 8**-0.5,
        **more: Any,
    ) -> None:
        self.vocab_size, self.max_position_embeddings, self.hidden_size = (
            vocab_size,
            max_position_embeddings,
            hidden_size,
        )
        self.num_attention_heads, self.head_dim, self.intermediate_size = (
            num_attention_heads,
            head_dim,
            intermediate_size,
        )
        self.levels, self.rms_norm_eps, self.softmax_scale = list(levels), rms_norm_eps, softmax_scale
        super().__init__(**{"tie_word_embeddings": False, **more})

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.levels) + len(self.levels) - 1


def linears(widths: dict[str, tuple[int, int]]) -> nn.ModuleDict:
    """Matrices [out, in] by name, from (in, out)."""
    return nn.ModuleDict({name: nn.Linear(*width, bias=False) for name, width in widths.items()})


class Block(nn.Module):
    """Attention and an MLP of a level that is `width` times as wide as the first."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        hidden, ffn, eps = width * config.hidden_size, width * config.intermediate_size, config.rms_norm_eps
        self.heads, self.scale = config.num_attention_heads, config.softmax_scale * width**-0.5
        inner = config.num_attention_heads * width * config.head_dim
        self.attention_norm = nn.RMSNorm(hidden, eps)
        given = dict.fromkeys(("query", "key", "value"), (hidden, inner))
        self.attention = linears({**given, "out": (inner, hidden)})
        self.mlp_norm = nn.RMSNorm(hidden, eps)
        self.mlp = linears({"up": (hidden, ffn), "down": (ffn, hidden)})

    def forward(self, x_BSD: Tensor, seen_BSS: Tensor) -> Tensor:
        h_BSD = self.attention_norm(x_BSD)
        q, k, v = (
            self.attention[part](h_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        out_BNSH = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BSS[:, None], scale=self.scale)
        x_BSD = x_BSD + self.attention["out"](out_BNSH.transpose(1, 2).flatten(2))
        return x_BSD + self.mlp["down"](F.gelu(self.mlp["up"](self.mlp_norm(x_BSD)), approximate="tanh"))


class Compressor(nn.Module):
    """A convolution with kernel and stride 4, from a level to one twice as wide; its weight is [out, in x 4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.compress = nn.Linear(TAPS * width, 2 * width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        kernel = self.compress.weight.unflatten(1, (-1, TAPS))
        return F.conv1d(x_BSD.transpose(1, 2), kernel, stride=TAPS).transpose(1, 2)


class Expander(nn.Module):
    """Its transpose, to a level half as wide; its weight is [out x 4, in]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, TAPS * (width // 2), bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        kernel = self.expand.weight.t().unflatten(1, (-1, TAPS))
        return F.conv_transpose1d(x_BSD.transpose(1, 2), kernel, stride=TAPS).transpose(1, 2)


class ConvolutionAttentionForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model that writes a unit of tokens at a time."""

    config_class = ConvolutionAttentionConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        layers, level, deepest = list[nn.Module](), 0, len(config.levels) // 2
        for number, blocks in enumerate(config.levels):
            layers += [Block(config, 2**level) for _ in range(blocks)]
            if number < deepest:
                layers.append(Compressor(2**level * config.hidden_size))
            elif number < 2 * deepest:
                layers.append(Expander(2**level * config.hidden_size))
            level += 1 if number < deepest else -1
        self.layers = nn.ModuleList(layers)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.unit = TAPS**deepest
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _in_units(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The logits [B, S, V] of a text that is padded at its left to a multiple of the longest unit."""
        missing = -input_ids.shape[1] % self.unit
        text_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids_BS, text_BS = F.pad(input_ids, (missing, 0)), F.pad(text_BS, (missing, 0)).bool()
        place_BS = torch.where(text_BS, text_BS.cumsum(1) - 1, (~text_BS).cumsum(1) - 1)
        x_BSD = (self.embedding(ids_BS) + self.positions(place_BS)) * text_BS[..., None]
        for layer in self.layers:
            if isinstance(layer, Block):
                # A unit is text where any of its tokens is; neither text nor padding sees the other.
                real_BS = text_BS.unflatten(1, (x_BSD.shape[1], -1)).any(-1)
                causal_SS = torch.ones(2 * real_BS.shape[1:], dtype=torch.bool, device=real_BS.device).tril()
                x_BSD = layer(x_BSD, causal_SS & (real_BS[:, None] == real_BS[:, :, None]))
            else:
                x_BSD = layer(x_BSD)
        return self.head(self.norm(x_BSD))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """The logits [B, S, vocabulary] of the tokens that are a unit ahead of the inputs; with labels [B, S], which
        are not shifted yet, the loss. attention_mask [B, S]: 0 where there is padding, which is at the left."""
        logits_BSV = self._in_units(input_ids, attention_mask)[:, -input_ids.shape[1] :]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BSV[:, : -self.unit].flatten(0, 1), labels[:, self.unit :].flatten())
        return CausalLMOutput(loss=loss, logits=logits_BSV)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
    ) -> Tensor:
        """The prompts [B, S], of any length, padded at the left where attention_mask [B, S] is 0, and the tokens behind
        them: a unit at a time, up to the model's positions. Behind the end of a text there is padding.

        What is not given is as in the generation config. Raises ValueError for prompts that leave no position free.
        """
        config = generation_config or self.generation_config
        more = max_new_tokens or config.max_new_tokens or self.unit
        sampled = config.do_sample if do_sample is None else do_sample
        warpers = LogitsProcessorList()
        for warper, value, least in (
            (TemperatureLogitsWarper, temperature or config.temperature, 1.0),
            (TopKLogitsWarper, config.top_k if top_k is None else top_k, 0),
            (TopPLogitsWarper, top_p or config.top_p, 1.0),
        ):
            if value is not None and value != least:
                warpers.append(warper(value))
        end = config.eos_token_id if eos_token_id is None else eos_token_id
        ends = torch.tensor([] if end is None else end, dtype=torch.int64, device=input_ids.device).flatten()
        padding = config.pad_token_id if pad_token_id is None else pad_token_id
        padding = padding if padding is not None else int(ends[0]) if len(ends) else 0
        ids, mask = input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
        room = self.config.max_position_embeddings - ids.shape[1]
        if room < 1 or not ids.shape[1]:
            raise ValueError(f"prompts of {ids.shape[1]} tokens: give 1 to {self.config.max_position_embeddings - 1}")
        ended = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
        for at in range(0, min(more, room), self.unit):
            logits_TV = self._in_units(ids, mask)[:, -self.unit :].flatten(0, 1).float()
            new = torch.multinomial(warpers(ids, logits_TV).softmax(-1), 1) if sampled else logits_TV.argmax(-1)
            new = new.view(len(ids), self.unit)[:, : min(more, room) - at]
            over = (torch.isin(new, ends).cumsum(1) > 0) | ended
            behind = torch.cat((ended, over[:, :-1]), 1)  # the token that ends a text is still of it
            ids = torch.cat((ids, new.masked_fill(behind, padding)), 1)
            mask = torch.cat((mask, torch.ones_like(new)), 1)
            ended = over[:, -1:]
            if ended.all():
                break
        return ids
