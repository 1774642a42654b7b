"""GPT-2 (Radford et al., 2019)."""

from pretrain.data.samples import causal
from pretrain.families.family import Family
from pretrain.families.gpt2.arguments import MEGATRON
from pretrain.families.gpt2.hf import FORM
from pretrain.families.gpt2.layout import parameters
from pretrain.families.gpt2.reference import REFERENCE
from pretrain.families.gpt2.table import TABLE
from pretrain.losses import NEXT_TOKEN

GPT2 = Family(
    table=TABLE,
    losses=(NEXT_TOKEN,),
    samples=causal,
    ahead=1,
    reference=REFERENCE,
    layout=parameters,
    model_module="pretrain.families.gpt2.model",
    text_module="pretrain.families.common.text",
    hf=FORM,
    megatron=MEGATRON,
)
