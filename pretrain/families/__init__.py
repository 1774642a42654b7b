"""The families of models: one folder and one record each. This is the only list of them."""

from __future__ import annotations

from growth.errors import GrowthError
from growth.family import register as register_table
from pretrain.families.bert import BERT
from pretrain.families.convolution_attention import CONVOLUTION_ATTENTION
from pretrain.families.family import Family, Head
from pretrain.families.gpt2 import GPT2
from pretrain.families.llama2 import LLAMA2
from pretrain.families.llama3 import LLAMA3, LLAMA3_TIED
from pretrain.families.qwen2 import QWEN2, QWEN2_TIED
from pretrain.families.qwen3 import QWEN3, QWEN3_TIED
from pretrain.families.transformer_xl import TRANSFORMER_XL

__all__ = ["FAMILIES", "Family", "Head", "of", "register"]

FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Makes a family known, to growth too."""
    FAMILIES[family.name] = family
    register_table(family.table)


def of(name: str) -> Family:
    """The family of this name; raises GrowthError for an unknown one."""
    if name not in FAMILIES:
        raise GrowthError(f"there is no family {name!r}: choose one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


for _family in (
    LLAMA2,
    BERT,
    GPT2,
    QWEN3,
    QWEN3_TIED,
    QWEN2,
    QWEN2_TIED,
    LLAMA3,
    LLAMA3_TIED,
    TRANSFORMER_XL,
    CONVOLUTION_ATTENTION,
):
    register(_family)
