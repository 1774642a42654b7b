"""Hugging Face folders: models out of the store, and models of others into it. One module for each family."""

from pretrain.hf import llama2
from pretrain.hf.family import HfFamily

FAMILIES: dict[str, HfFamily] = {"llama2": llama2.LLAMA}
"""By the name of the family in growth; `model_type` in a config.json is the family's own."""

__all__ = ["FAMILIES", "HfFamily"]
