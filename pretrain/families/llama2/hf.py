"""LLaMA-2 as transformers' LlamaForCausalLM."""

from pathlib import Path
from typing import Any

from pretrain.families.common.decoder.hf import form
from pretrain.families.common.decoder.table import table
from pretrain.families.common.hf.form import Code

TABLE = table("llama2", norm_eps=1e-5, rope_theta=1e4)


def own(layers: int) -> dict[str, Any]:
    """See `form`."""
    return {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}


LLAMA = form(
    TABLE,
    "llama",
    "LlamaForCausalLM",
    own,
    code=Code(
        file=Path(__file__).with_name("modeling_llama2.py"),
        model_type="cambium_llama2",
        model_class="OrderedLlamaForCausalLM",
        auto={"AutoConfig": "OrderedLlamaConfig", "AutoModelForCausalLM": "OrderedLlamaForCausalLM"},
        says=("order", "span"),
    ),
)
