"""Llama 3.1, 3.2 and 3.3 (Grattafiori et al., 2024): LLaMA-2's decoder with scaled rotary frequencies. In the small
ones the head is the embedding. Llama 3.0, whose frequencies are plain, is a model of LLaMA-2's family."""

from typing import Any

from pretrain.families.common.decoder.hf import form
from pretrain.families.common.decoder.record import decoder
from pretrain.families.common.decoder.table import table
from pretrain.families.family import Family

SCALING = {
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_length": 8192.0,
}


def _own(layers: int) -> dict[str, Any]:
    return {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}


def _family(name: str, tied: bool) -> Family:
    of = table(name, norm_eps=1e-5, rope_theta=5e5, scaling=SCALING, tied=tied)
    return decoder(of, form(of, "llama", "LlamaForCausalLM", _own), variant_of="llama2")


LLAMA3, LLAMA3_TIED = _family("llama3", tied=False), _family("llama3_tied", tied=True)
