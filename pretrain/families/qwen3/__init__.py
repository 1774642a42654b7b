"""Qwen 3 (Yang et al., 2025), its dense models: LLaMA-2's decoder with RMSNorm on queries and keys. In the small ones
the head is the embedding."""

from typing import Any

from pretrain.families.common.decoder.hf import form, windows
from pretrain.families.common.decoder.record import decoder
from pretrain.families.common.decoder.table import table
from pretrain.families.family import Family


def _own(layers: int) -> dict[str, Any]:
    return {**windows(layers), "attention_bias": False}


def _family(name: str, tied: bool, variant_of: str = "") -> Family:
    of = table(name, norm_eps=1e-6, rope_theta=1e6, head_norms=True, tied=tied)
    needs = ("num_key_value_heads", "head_dim")
    return decoder(of, form(of, "qwen3", "Qwen3ForCausalLM", _own, needs=needs), variant_of=variant_of)


QWEN3 = _family("qwen3", tied=False)
QWEN3_TIED = _family("qwen3_tied", tied=True, variant_of="qwen3")
