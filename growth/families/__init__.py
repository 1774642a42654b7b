"""The tables of the families: adding a family is adding one module here and a reference model."""

from growth.families.bert import BERT
from growth.families.gpt2 import GPT2
from growth.families.llama2 import LLAMA2, LLAMA2_SHARED
from growth.family import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (LLAMA2, LLAMA2_SHARED, BERT, GPT2)}
