"""Transformer-XL (Dai et al., 2019)."""

from pretrain.data.samples import causal
from pretrain.families.family import Family
from pretrain.families.transformer_xl.hf import FORM
from pretrain.families.transformer_xl.layout import parameters
from pretrain.families.transformer_xl.reference import REFERENCE
from pretrain.families.transformer_xl.table import TABLE
from pretrain.losses import NEXT_TOKEN

TRANSFORMER_XL = Family(
    table=TABLE,
    losses=(NEXT_TOKEN,),
    samples=causal,
    ahead=1,
    reference=REFERENCE,
    layout=parameters,
    model_module="pretrain.families.transformer_xl.model",
    text_module="pretrain.families.common.text",
    hf=FORM,
    memory=True,
    relu=True,
)
