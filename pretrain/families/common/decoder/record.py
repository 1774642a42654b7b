"""The record of a family of decoders."""

from typing import Any

from growth.family import Family as Table
from pretrain.data.samples import causal
from pretrain.families.common.decoder.arguments import megatron
from pretrain.families.common.decoder.layout import parameters
from pretrain.families.common.decoder.reference import REFERENCE
from pretrain.families.common.hf.form import HfForm
from pretrain.families.family import Family
from pretrain.losses import NEXT_TOKEN


def decoder(table: Table, hf: HfForm, **more: Any) -> Family:
    """The family of a table and its form in transformers; more: of Family."""
    return Family(
        table=table,
        losses=(NEXT_TOKEN,),
        samples=causal,
        ahead=1,
        reference=REFERENCE,
        layout=parameters,
        model_module="pretrain.families.common.decoder.model",
        text_module="pretrain.families.common.text",
        hf=hf,
        megatron=megatron(table),
        memory=True,
        **more,
    )
