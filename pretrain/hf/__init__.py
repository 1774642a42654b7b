"""Hugging Face folders: models out of the store, and models of others into it. One module for each family."""

from pretrain.errors import UserError
from pretrain.families.bert import hf as bert
from pretrain.families.common.hf.form import HfFamily
from pretrain.families.gpt2 import hf as gpt2
from pretrain.families.llama2 import hf as llama2

FAMILIES: dict[str, HfFamily] = {"llama2": llama2.LLAMA, "gpt2": gpt2.GPT2, "bert": bert.BERT}
"""By the name of the family in growth; `model_type` in a config.json is the family's own."""


def hf_family(name: str) -> HfFamily:
    """The family of a checkpoint's architecture; raises UserError for one that has no Hugging Face form here."""
    if name not in FAMILIES:
        raise UserError(f"there is no export of the family {name!r} yet: only of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


__all__ = ["FAMILIES", "HfFamily", "hf_family"]
