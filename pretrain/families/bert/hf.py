"""BERT as transformers' MegatronBertForPreTraining: the same tensors under the same names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growth import Architecture
from pretrain.families.bert.table import TABLE
from pretrain.families.common.hf.form import Code, HfForm
from pretrain.families.common.hf.values import positive
from pretrain.families.common.layernorm_bias.hf import architecture_of, sizes_of

SIZES = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}
# The output bias is the first parameter of its module.
BIAS = "cls.predictions.bias"
ROWS = tuple(spec.name for spec in TABLE.tensors if spec.name != BIAS)
FIRST = ROWS.index("cls.predictions.transform.dense.weight")


def config(arch: Architecture) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars. Raises UserError for what they cannot say."""
    return {
        **sizes_of(arch, "MegatronBertForPreTraining", SIZES),
        "layer_norm_eps": arch.scalars["norm_eps"],
        "hidden_act": "gelu",
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "is_decoder": False,
        "tie_word_embeddings": True,
    }


def architecture(imported: Mapping[str, Any], where: str) -> Architecture:
    """Of a config.json of any version of transformers. Raises UserError naming what cannot be taken over."""
    fixed = {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    }
    eps = positive(imported, "layer_norm_eps", 1e-12, where)
    return architecture_of("bert", imported, where, SIZES, eps, fixed, {"labels": 2})


FORM = HfForm(
    model_type="megatron-bert",
    model_class="MegatronBertForPreTraining",
    rows=(*ROWS[:FIRST], BIAS, *ROWS[FIRST:]),
    config=config,
    architecture=architecture,
    kept=("pad_token_id", "initializer_range", "use_cache"),
    repeated=(".position_ids",),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": BIAS,
    },
    generates=False,
    code=Code(
        file=Path(__file__).with_name("modeling_bert.py"),
        model_type="cambium_bert",
        model_class="OrderedBertForPreTraining",
        auto={
            "AutoConfig": "OrderedBertConfig",
            "AutoModelForPreTraining": "OrderedBertForPreTraining",
            "AutoModelForMaskedLM": "OrderedBertForMaskedLM",
        },
    ),
)
