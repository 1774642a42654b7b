"""LLaMA-2 (Touvron et al., 2023)."""

from pretrain.families.common.decoder.record import decoder
from pretrain.families.llama2.hf import LLAMA, TABLE

LLAMA2 = decoder(TABLE, LLAMA)
