"""Qwen 2 and 2.5 (Yang et al., 2024), their dense models: LLaMA-2's decoder with biases of queries, keys and values. In
the small ones the head is the embedding."""

from pretrain.families.common.decoder.hf import form, windows
from pretrain.families.common.decoder.record import decoder
from pretrain.families.common.decoder.table import table
from pretrain.families.family import Family


def _family(name: str, tied: bool) -> Family:
    of = table(name, norm_eps=1e-6, rope_theta=1e6, biases=True, tied=tied)
    needs = ("num_key_value_heads",)
    hf = form(of, "qwen2", "Qwen2ForCausalLM", windows, needs=needs, head_dim=False)
    return decoder(of, hf, variant_of="llama2")


QWEN2, QWEN2_TIED = _family("qwen2", tied=False), _family("qwen2_tied", tied=True)
