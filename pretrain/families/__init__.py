"""The tables of the families: adding a family is adding one module here and a reference model."""

from growth.family import Family
from pretrain.families.bert.table import BERT
from pretrain.families.gpt2.table import GPT2
from pretrain.families.llama2.table import LLAMA2

FAMILIES: dict[str, Family] = {f.name: f for f in (LLAMA2, BERT, GPT2)}
