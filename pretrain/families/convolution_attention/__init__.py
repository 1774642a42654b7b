"""Convolution Attention: attention over few wide units that convolutions make of many tokens."""

from pretrain.data.samples import causal
from pretrain.families.convolution_attention.hf import FORM
from pretrain.families.convolution_attention.layout import parameters
from pretrain.families.convolution_attention.padding import prompt
from pretrain.families.convolution_attention.reference import REFERENCE
from pretrain.families.convolution_attention.table import TABLE
from pretrain.families.family import Family
from pretrain.losses import NEXT_TOKEN

CONVOLUTION_ATTENTION = Family(
    table=TABLE,
    losses=(NEXT_TOKEN,),
    samples=causal,
    ahead=1,
    reference=REFERENCE,
    layout=parameters,
    model_module="pretrain.families.convolution_attention.model",
    text_module="pretrain.families.convolution_attention.text",
    hf=FORM,
    prompt=prompt,
)
