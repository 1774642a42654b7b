"""LLaMA-2 (Touvron et al., 2023)."""

from pretrain.data.samples import causal
from pretrain.families.family import Family
from pretrain.families.llama2.arguments import MEGATRON
from pretrain.families.llama2.hf import LLAMA
from pretrain.families.llama2.layout import parameters
from pretrain.families.llama2.reference import REFERENCE
from pretrain.families.llama2.table import TABLE
from pretrain.losses import NEXT_TOKEN

LLAMA2 = Family(
    table=TABLE,
    losses=(NEXT_TOKEN,),
    samples=causal,
    ahead=1,
    reference=REFERENCE,
    layout=parameters,
    model_module="pretrain.families.llama2.model",
    text_module="pretrain.families.common.text",
    hf=LLAMA,
    megatron=MEGATRON,
)
