"""BERT, as Megatron-LM builds it, with its sublayers in any order, for transformers: this file goes with a model that
is exported, and is run by `from_pretrained(..., trust_remote_code=True)`. It needs nothing but torch and transformers.

`config.order` has a letter for each sublayer: s is attention, f an MLP, each with its norm before it and its residual
branch. Shape suffixes: B batch, S positions, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MegatronBertConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.megatron_bert.modeling_megatron_bert import MegatronBertForPreTrainingOutput


class OrderedBertConfig(MegatronBertConfig):
    """Of Megatron-LM's BERT, `num_hidden_layers` being the number of sublayers."""

    model_type = "cambium_bert"
    order: str = ""


class Part(nn.Module):
    """Modules and parameters under names that a checkpoint has, and nothing else."""

    def __init__(self, /, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def __getattr__(self, name: str) -> Any:  # so that a checker of types takes them for what they are
        return super().__getattr__(name)


def linear(width: int, to: int) -> Part:
    return Part(dense=nn.Linear(width, to))


def norm(config: Any) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        parts = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = Part(ln=norm(config), self=nn.ModuleDict(parts), output=linear(width, width))

    def forward(self, x_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        h_BSD, of = self.attention.ln(x_BSD), self.attention.self
        q, k, v = (
            of[part](h_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in ("query", "key", "value")
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BS[:, None, None])
        return x_BSD + self.attention.output.dense(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.ln, self.intermediate, self.output = norm(config), linear(width, inner), linear(inner, width)

    def forward(self, x_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        return x_BSD + self.output.dense(F.gelu(self.intermediate.dense(self.ln(x_BSD))))


class OrderedBertForPreTraining(PreTrainedModel):
    """Masked words, whose head is the embedding, and the next sentence."""

    config_class = OrderedBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        tables = {"word": config.vocab_size, "position": config.max_position_embeddings}
        tables["token_type"] = config.type_vocab_size
        layers = [Attention(config) if letter == "s" else MLP(config) for letter in config.order]
        self.bert = Part(
            embeddings=Part(**{f"{name}_embeddings": nn.Embedding(rows, width) for name, rows in tables.items()}),
            encoder=Part(layer=nn.ModuleList(layers), ln=norm(config)),
            pooler=linear(width, width),
        )
        transform = Part(dense=nn.Linear(width, width), LayerNorm=norm(config))
        predictions = Part(transform=transform, bias=nn.Parameter(torch.zeros(config.vocab_size)))
        self.cls = Part(predictions=predictions, seq_relationship=nn.Linear(width, 2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.bert.embeddings.word_embeddings
        return embeddings

    def outputs(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits of the words [B, S, vocabulary] and of the next sentence [B, 2].

        attention_mask [B, S]: 0 where there is padding. token_type_ids [B, S]: 1 in the second segment.
        """
        tables, head = self.bert.embeddings, self.cls.predictions
        types_BS = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        valid_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x_BSD = tables.word_embeddings(input_ids) + tables.token_type_embeddings(types_BS)
        x_BSD = x_BSD + tables.position_embeddings.weight[: input_ids.shape[1]]
        for layer in self.bert.encoder.layer:
            x_BSD = layer(x_BSD, valid_BS.bool())
        x_BSD = self.bert.encoder.ln(x_BSD)
        pooled_BD = torch.tanh(self.bert.pooler.dense(x_BSD[:, 0]))
        h_BSD = head.transform.LayerNorm(F.gelu(head.transform.dense(x_BSD)))
        return F.linear(h_BSD, tables.word_embeddings.weight, head.bias), self.cls.seq_relationship(pooled_BD)

    def forward(self, input_ids: Tensor, **samples: Any) -> Any:
        """Both logits."""
        words, next_sentence = self.outputs(input_ids, **_known(samples))
        return MegatronBertForPreTrainingOutput(prediction_logits=words, seq_relationship_logits=next_sentence)


class OrderedBertForMaskedLM(OrderedBertForPreTraining):
    """Masked words alone."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **samples: Any) -> Any:
        """The logits of the words; with labels [B, S], -100 where nothing is masked, their loss."""
        words, _ = self.outputs(input_ids, **_known(samples))
        loss = None if labels is None else F.cross_entropy(words.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=words)


def _known(samples: dict[str, Any]) -> dict[str, Any]:
    return {key: samples.get(key) for key in ("attention_mask", "token_type_ids")}
